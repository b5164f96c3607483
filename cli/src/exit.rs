//! How a command ends: exit codes, and the one door out of the process.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

/// All is well.
pub const OK: u8 = 0;
/// The command failed, or what it checked does not hold.
pub const FAILED: u8 = 1;
/// Chaos: whether it is well cannot be told, or what was to be tried was not.
pub const UNKNOWN: u8 = 2;
/// An experiment: something that must come to an end did not.
pub const NOT_LIVE: u8 = 3;
/// An experiment could not be carried out.
pub const HARNESS: u8 = 5;
/// An experiment: safe, but a figure was missed.
pub const FIGURE_MISSED: u8 = 6;
/// The command line or the configuration is wrong; nothing was started.
pub const USAGE: u8 = 64;
/// A daemon's port is taken; starting it at another port may work.
pub const PORT_IN_USE: u8 = 75;
/// The reader of our output went away (as for a process ended by SIGPIPE).
pub const CLOSED_OUTPUT: u8 = 141;

/// Why a command failed, and the exit code that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What failed, because of what, and what to do.
    pub message: String,
}

/// The exit code of a command that ran, or why it did not.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// The command line asks for something that cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure { code: USAGE, message: message.into() }
    }
}

impl<T: fmt::Display> From<T> for Failure {
    /// Anything else that went wrong.
    fn from(error: T) -> Self {
        Failure { code: FAILED, message: error.to_string() }
    }
}

static LEAVING: AtomicBool = AtomicBool::new(false);

/// Ends the process from any thread. Processes and directories that it owns go first.
pub fn leave(code: u8) -> ! {
    if LEAVING.swap(true, Ordering::SeqCst) {
        // Another thread is already on the way out; its exit code counts.
        loop {
            std::thread::park();
        }
    }
    crate::commands::start::abandon();
    crate::chaos::inject::undo_own();
    crate::cluster::shut_down_all();
    std::process::exit(i32::from(code));
}

/// Says why a command failed on standard error, unless the process is being ended anyway: then
/// what failed is only a consequence.
pub fn report(failure: &Failure) {
    if LEAVING.load(Ordering::SeqCst) {
        return;
    }
    crate::output::complain(format_args!("error: {}", failure.message));
}
