//! Why a call did not give a value.

use mobula_proto::{Failure, FailureKind};
use std::time::Duration;

/// What a caller of the API can get instead of a value.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The task ended without a value; `kind` says how, `causes` lead to the first cause.
    #[error("{}", describe(*.kind, .message, .causes))]
    Task {
        /// How it ended.
        kind: FailureKind,
        /// What happened, because of what.
        message: String,
        /// Where the failure came from, nearest first.
        causes: Vec<String>,
    },
    /// The value was not there in time. It may still come: get it again.
    #[error(
        "no value within {0:?}; the task may still be running, so get it again or look at its cluster's status"
    )]
    Timeout(Duration),
    /// A placement group was not placed in time. It may still be: wait again, or remove it.
    #[error("the placement group is not placed after {after:?}: {why}")]
    NotPlaced {
        /// How long that was.
        after: Duration,
        /// What it waits for, as far as is known.
        why: String,
    },
    /// The node daemon is gone or closed the connection; the outcome of what was in flight is unknown.
    #[error("the connection to the node daemon ended: {0}; reconnect to a running node (`mobula status`)")]
    Disconnected(String),
    /// The daemon did not take the connection.
    #[error("the node daemon refused: {0}")]
    Refused(String),
    /// Nothing answers at the socket.
    #[error(
        "cannot reach a node daemon at {socket}: {cause}; start one (`mobula start --head`, `mobula up`) or name its socket"
    )]
    Unreachable {
        /// The socket that was tried.
        socket: String,
        /// Why it failed.
        cause: String,
    },
    /// A file that the job was to ship.
    #[error("{path} cannot be shipped to the workers: {cause}")]
    NotShipped {
        /// The file, or the directory it is in.
        path: String,
        /// Why it failed.
        cause: String,
    },
    /// A value could not be encoded or decoded as the type that was asked for.
    #[error("value cannot be converted: {0}")]
    Value(String),
}

fn describe(kind: FailureKind, message: &str, causes: &[String]) -> String {
    let name = kind.as_str_name().trim_start_matches("FAILURE_").to_lowercase().replace('_', " ");
    let mut text = format!("{name}: {message}");
    for cause in causes {
        text.push_str("\n  because of ");
        text.push_str(cause);
    }
    text
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Error::Task { kind: failure.kind(), message: failure.message, causes: failure.causes }
    }
}
