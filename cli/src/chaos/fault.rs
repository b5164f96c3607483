//! A fault as it went: what was asked for, whom it struck, what became of it.

use mobula_chaos::Kind;
use serde::Serialize;
use std::fmt::{Display, Formatter, Result as Fmt};
use std::time::Duration;

/// A member of the cluster. Both are counted from 1, as their names are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whom {
    /// A head.
    Head(usize),
    /// A node.
    Node(usize),
}

impl Display for Whom {
    fn fmt(&self, f: &mut Formatter<'_>) -> Fmt {
        match self {
            Whom::Head(number) => write!(f, "head {number}"),
            Whom::Node(number) => write!(f, "node {number}"),
        }
    }
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was done, and healed.
    Installed,
    /// There was nobody to do it to, or it would have taken what must stay.
    Skipped,
    /// Whether it was done is not known.
    Indeterminate,
}

/// One fault of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// Which.
    pub kind: Kind,
    /// What became of it.
    pub outcome: Outcome,
    /// When, in seconds from the beginning.
    pub at_s: f64,
    /// How long it lasted, in seconds; what is over at once lasts none.
    pub lasted_s: f64,
    /// Whom.
    pub whom: Vec<Whom>,
    /// What was done, or why not.
    pub text: String,
    /// Lives of nodes that it may have ended, by their incarnations.
    pub lives: Vec<u64>,
    /// Shards that whom it struck led, with the term.
    pub led: Vec<(u32, u64)>,
    /// What the cluster's own log says of it.
    pub told: Vec<String>,
}

impl Fault {
    /// One that was not done.
    pub fn skipped(kind: Kind, at: Duration, why: String) -> Self {
        Fault { outcome: Outcome::Skipped, text: why, ..Fault::begun(kind, at) }
    }

    /// One that begins.
    pub fn begun(kind: Kind, at: Duration) -> Self {
        Fault {
            kind,
            outcome: Outcome::Installed,
            at_s: at.as_secs_f64(),
            lasted_s: 0.0,
            whom: Vec::new(),
            text: String::new(),
            lives: Vec::new(),
            led: Vec::new(),
            told: Vec::new(),
        }
    }
}
