//! What runs under faults, and what goes wrong when: shared by the simulator and by chaos on real processes, so that one
//! scenario file drives both.
//!
//! Nothing here runs anything: it must not know of clusters, processes, clocks or networks. Read it in this order:
//!
//! - [`dice`], [`mix`] — seeded draws, and one number out of two.
//! - [`style`], [`program`] — random programs and the interpreter that knows their answers.
//! - [`script`] — what the driver of a program does when.
//! - [`content`] — its values as the SDK carries them.
//! - [`cause`], [`probe`] — what judges on any layer ask: why something failed, what a node has left.
//! - [`kind`], [`scenario`], [`suite`] — faults by name, a run as a file, and many of them.

pub mod cause;
#[cfg(feature = "sdk")]
pub mod content;
pub mod dice;
pub mod kind;
pub mod mix;
pub mod probe;
pub mod program;
pub mod scenario;
pub mod script;
pub mod style;
pub mod suite;

pub use kind::Kind;
pub use scenario::{Planned, Scenario};
