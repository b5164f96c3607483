//! Claims about scale, placement and pressure, in virtual time: hundreds of real scheduler cores, an ideal
//! network, and control-store shards that are as slow as they are told to be.
//!
//! What is real: every node's [`mobula_scheduler::Core`] and every shard's tables
//! ([`mobula_gcs::core::ShardState`]). What is simulated, and how plainly: a message takes one latency, large
//! objects also their turn on the link between two nodes; a shard serves one batch after the other; workers
//! sleep. Nothing is lost and nothing is drawn, so a figure is the same on every run. What a core's own
//! computing costs is not in it: the benches measure that. What goes wrong in earnest is the business of
//! [`crate::core`].
//!
//! Read it in this order:
//!
//! - [`shape`] — how large the cluster is, and how fast its parts.
//! - [`wire`], [`shard`], [`worker`] — what the cores share and wait for.
//! - [`world`] — all there is, and the loop over its events; [`node`] — the shell around a core.
//! - [`driver`] — who submits; [`tally`], [`fit`] — what was counted.
//! - [`linear`], [`ramp`], [`loss`], [`locality`], [`stragglers`] — the claims, a file each.

pub mod driver;
pub mod fit;
pub mod linear;
pub mod locality;
pub mod loss;
pub mod node;
pub mod ramp;
pub mod shape;
pub mod shard;
pub mod stragglers;
pub mod tally;
pub mod wire;
pub mod worker;
pub mod world;

use mobula_base::JobId;

/// The one job of a simulated cluster.
pub const JOB: JobId = JobId(7);
