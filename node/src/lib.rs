//! The node daemon: dull shells around the deciding cores.
//!
//! What runs where, what waits and what is rebuilt is decided by `mobula-scheduler`; what lies
//! where in shared memory by `mobula-objstore`. This crate performs their effects: it reads and
//! writes sockets, starts workers, talks to the control store. It holds no policy.
//!
//! Read it in this order:
//!
//! - [`config`] — what a node is told, and the seams it runs on ([`Parts`]).
//! - [`daemon`] — joining, the loop, one life after another.
//! - [`perform`] — effects of the core; [`input`] — everything that comes in; [`clients`] — what drivers and
//!   workers say, in the order in which they say it; [`groups`] — what they want of placement groups.
//! - [`room`] — what the store decides; [`spill`] — the files of objects that left memory.
//! - [`links`] — drivers and workers; [`local`] — the Unix socket that hands out the memory.
//! - [`peers`] — sequenced streams between nodes; [`transfer`] — bulk copies.
//! - [`http`] — the same port for people and their tools; [`metrics`] — what they can count.
//! - [`look`] — rows for those who look at what is here.
//! - [`control`] — everything towards the control store.
//! - [`memory`] — what workers have of it.
//! - [`spawn`] — worker processes; [`packages`] — their executables and files, brought from where the driver is.

pub mod clients;
pub mod config;
pub mod control;
pub mod daemon;
pub mod groups;
pub mod http;
pub mod input;
pub mod links;
pub mod local;
pub mod look;
pub mod memory;
pub mod metrics;
pub mod packages;
pub mod peers;
pub mod perform;
pub mod room;
pub mod spawn;
pub mod spill;
pub mod transfer;

pub use config::{Error, NodeConfig, Parts, Ready};
pub use daemon::{run, run_with};
pub use mobula_scheduler::LINGER;
