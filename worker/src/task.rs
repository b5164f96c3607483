//! A task before it is submitted.

use crate::args::Args;
use crate::function::function_id;
use crate::reference::AnyRef;
use mobula_base::resources::{GPU, MEMORY, milli};
use mobula_proto::{NamedResource, TaskSpec};
use std::marker::PhantomData;

/// How often a task is run again when its worker or node died, unless it says otherwise.
pub const DEFAULT_RETRIES: u32 = 3;

/// A function with its arguments and options; [`crate::Client::submit`] makes it run.
#[must_use = "a task does nothing until it is submitted"]
pub struct Task<T> {
    pub(crate) spec: TaskSpec,
    pub(crate) error: Option<String>,
    /// What it names: referred to until its submission says so.
    pub(crate) named: Vec<AnyRef>,
    marker: PhantomData<fn() -> T>,
}

impl<T> Task<T> {
    /// Called by `#[remote]`.
    pub fn new(function: &'static str, args: Args) -> Self {
        let spec = TaskSpec {
            function: function_id(function),
            nested: args.nested_ids(),
            args: args.args,
            cpu_milli: 1000,
            max_retries: DEFAULT_RETRIES,
            ..TaskSpec::default()
        };
        let mut named = args.named;
        named.extend(args.nested);
        Task { spec, error: args.error, named, marker: PhantomData }
    }

    /// CPUs it takes while it runs (default 1; thousandths count).
    pub fn cpus(mut self, cpus: f64) -> Self {
        self.spec.cpu_milli = u32::try_from(milli(cpus)).unwrap_or(u32::MAX);
        self
    }

    /// An amount of a named resource that a node must offer; thousandths count.
    pub fn resource(mut self, name: &str, amount: f64) -> Self {
        self.spec.resources.retain(|resource| resource.name != name);
        self.spec.resources.push(NamedResource { name: name.to_owned(), milli: milli(amount) });
        self
    }

    /// GPUs: whole ones, or less than 1 of one that others share. Which ones they are says
    /// [`crate::Client::devices`].
    pub fn gpus(self, gpus: f64) -> Self {
        self.resource(GPU, gpus)
    }

    /// Memory in millions of bytes, of what nodes offer (`--memory-mb`). It is counted, not enforced:
    /// [`Task::memory_limit_mb`] is.
    pub fn memory_mb(self, mb: f64) -> Self {
        self.resource(MEMORY, mb)
    }

    /// How often it may run again when its worker or node died. 0: never; it then ends as
    /// `MayHaveRun`, and it starts only once its record is committed (R7).
    pub fn retries(mut self, retries: u32) -> Self {
        self.spec.max_retries = retries;
        self
    }
}
