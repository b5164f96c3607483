//! Commands and options of the contract that are not built yet: refused by name, so that nobody
//! takes silence for success.

use crate::exit::{Failure, Outcome};

/// `chaos`.
pub fn command(name: &str, args: &[std::ffi::OsString]) -> Outcome {
    let asked = args.first().map_or(String::new(), |a| format!(" {}", a.to_string_lossy()));
    Err(Failure::usage(format!(
        "`mobula {name}{asked}` is not there yet: no {name} is built in this version; `mobula demo` kills a head \
         and a node under a real job, `mobula sim` runs simulated clusters"
    )))
}

/// An option of a command that exists.
pub fn option(name: &str, instead: &str) -> Outcome {
    Err(Failure::usage(format!("{name} is not there yet in this version; {instead}")))
}
