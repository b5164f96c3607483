//! The registry of remote functions: `#[remote]` fills it at link time.

use crate::args::ArgReader;
use crate::value::{self, Encoded};
use mobula_base::ids::hash64;
use mobula_proto::{Failure, FailureKind, FunctionName};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;

/// The encoded return value, or why there is none.
pub type RunResult = Result<Encoded, Failure>;
/// An async function's run.
pub type RunFuture = Pin<Box<dyn Future<Output = RunResult> + Send>>;

/// How to run a function.
#[derive(Clone, Copy)]
pub enum Run {
    /// An ordinary function.
    Sync(fn(ArgReader) -> RunResult),
    /// An `async fn`.
    Async(fn(ArgReader) -> RunFuture),
}

/// A registered function.
pub struct Function {
    name: &'static str,
    pub(crate) run: Run,
}

impl Function {
    /// Called by `#[remote]`.
    pub const fn new(name: &'static str, run: Run) -> Self {
        Function { name, run }
    }

    /// The function registered under an id, if this binary has it.
    pub fn find(id: u64) -> Option<&'static Function> {
        // Hashed once per process, not once per task.
        static BY_ID: OnceLock<BTreeMap<u64, &'static Function>> = OnceLock::new();
        let by_id = || inventory::iter::<Function>().map(|f| (function_id(f.name), f)).collect();
        BY_ID.get_or_init(by_id).get(&id).copied()
    }

    /// All functions of this binary.
    pub fn names() -> Vec<FunctionName> {
        let mut names: Vec<FunctionName> = inventory::iter::<Function>()
            .map(|f| FunctionName { id: function_id(f.name), name: f.name.to_owned() })
            .collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        names
    }
}

inventory::collect!(Function);

/// The id of a function: a hash of its path.
pub fn function_id(name: &str) -> u64 {
    hash64(&[name.as_bytes()])
}

/// Encodes what a function returned.
///
/// # Errors
/// It cannot be encoded.
pub fn encode_value<T: Serialize>(out: &T) -> RunResult {
    match crate::context::returns() {
        (0, 0) => {}
        (0, _) => return crate::streamed::encode(out),
        (elements, _) => return crate::split::encode(out, elements),
    }
    value::encode(out)
        .map_err(|e| Failure::new(FailureKind::FailureUserError, crate::streamed::refusal().unwrap_or(e)))
}

/// Encodes what a fallible function returned.
///
/// # Errors
/// The function's own error, or the value cannot be encoded.
pub fn encode_result<T: Serialize, E: Display>(out: Result<T, E>) -> RunResult {
    match out {
        Ok(value) => encode_value(&value),
        Err(error) => Err(Failure::new(FailureKind::FailureUserError, format!("{error:#}"))),
    }
}
