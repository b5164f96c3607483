//! Commands and options of the contract that are not built yet: refused by name, so that nobody
//! takes silence for success.

use crate::exit::{Failure, Outcome};

/// An option of a command that exists.
pub fn option(name: &str, instead: &str) -> Outcome {
    Err(Failure::usage(format!("{name} is not there yet in this version; {instead}")))
}
