//! What must hold whatever goes wrong.
//!
//! - [`runs`] — of the executions that workers wrote down.
//! - [`log`] — of the cluster's own account of what happened to it.

pub mod log;
pub mod runs;

use serde::Serialize;

/// What a broken promise breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Something wrong happened.
    Safety,
    /// Something right did not.
    Liveness,
    /// It cannot be told.
    Unknown,
    /// It is right, and later than it should be.
    Figure,
}

/// What a judge says.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// Its name, the same as in the simulator.
    pub judge: &'static str,
    /// Which rules or properties of the design.
    pub rule: &'static str,
    /// What it would be if it did not hold.
    pub class: Class,
    /// How many things it looked at.
    pub checked: u64,
    /// The first thing that is not as it must be.
    pub objection: Option<String>,
    /// What else is worth knowing.
    pub note: Option<String>,
}

impl Judged {
    /// One that has looked at so many things and objects to none.
    pub fn of(judge: &'static str, rule: &'static str, class: Class, checked: u64) -> Self {
        Judged { judge, rule, class, checked, objection: None, note: None }
    }

    /// With this objection, if it is one.
    #[must_use]
    pub fn objecting(self, objection: Option<String>) -> Self {
        Judged { objection, ..self }
    }

    /// With this note.
    #[must_use]
    pub fn noting(self, note: String) -> Self {
        Judged { note: Some(note), ..self }
    }
}
