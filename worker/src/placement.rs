//! Where a task may run, beyond what it demands.

use crate::task::Task;
use mobula_proto::{LabelOp, LabelTerm, NodeAffinity, Placement, TaskOptions};

/// Whether a task may run elsewhere than on the node it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affinity {
    /// Only there. It waits while the node is busy, and fails as infeasible when there is no such node.
    Hard,
    /// There, unless the node is gone, too small, or has no room now.
    Soft,
}

/// A node, as a task may name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Any life of the node with this name.
    Named(String),
    /// This life of a node only, as [`crate::Client::node`] and `mobula status --json` have it.
    Life(u64),
}

impl From<&str> for Node {
    fn from(name: &str) -> Self {
        Node::Named(name.to_owned())
    }
}

impl From<String> for Node {
    fn from(name: String) -> Self {
        Node::Named(name)
    }
}

impl From<u64> for Node {
    fn from(incarnation: u64) -> Self {
        Node::Life(incarnation)
    }
}

/// What a task wants of its node's labels (`mobula start --label KEY=VALUE`).
#[derive(Debug, Clone, PartialEq)]
pub struct Label(LabelTerm);

impl Label {
    fn new<V: Into<String>>(key: &str, op: LabelOp, values: impl IntoIterator<Item = V>) -> Self {
        let values = values.into_iter().map(Into::into).collect();
        Label(LabelTerm { key: key.to_owned(), op: op as i32, values })
    }

    /// The label is there, with one of these values.
    pub fn is_in<V: Into<String>>(key: &str, values: impl IntoIterator<Item = V>) -> Self {
        Label::new(key, LabelOp::LabelIn, values)
    }

    /// The label is not there, or has none of these values.
    pub fn not_in<V: Into<String>>(key: &str, values: impl IntoIterator<Item = V>) -> Self {
        Label::new(key, LabelOp::LabelNotIn, values)
    }

    /// The label is there.
    pub fn exists(key: &str) -> Self {
        Label::new(key, LabelOp::LabelExists, [""; 0])
    }

    /// The label is not there.
    pub fn missing(key: &str) -> Self {
        Label::new(key, LabelOp::LabelNotExists, [""; 0])
    }
}

impl<T> Task<T> {
    pub(crate) fn options(&mut self) -> &mut TaskOptions {
        self.spec.options.get_or_insert_default()
    }

    fn placement(&mut self) -> &mut Placement {
        self.options().placement.get_or_insert_default()
    }

    /// Runs on the node that has the least to do, wherever the arguments are: many of these are spread evenly.
    pub fn spread(mut self) -> Self {
        self.placement().spread = true;
        self
    }

    /// Runs on a node that is named, or known by [`crate::Client::node`].
    pub fn node_affinity(mut self, node: impl Into<Node>, affinity: Affinity) -> Self {
        let soft = affinity == Affinity::Soft;
        self.placement().node = Some(match node.into() {
            Node::Named(name) => NodeAffinity { name, incarnation: 0, soft },
            Node::Life(incarnation) => NodeAffinity { name: String::new(), incarnation, soft },
        });
        self
    }

    /// Runs only where this holds of the node's labels. Several must hold together.
    pub fn label(mut self, label: Label) -> Self {
        self.placement().labels.push(label.0);
        self
    }
}
