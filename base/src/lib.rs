//! What every part of Mobula shares: identities, time as a value, seeded random streams,
//! exact resources, and the disk seam.
//!
//! Nothing here waits, opens a socket or reads a clock; there is no tokio in this crate.
//! Read it in this order:
//!
//! - [`ids`] — deterministic identities (rule R1): runs, tasks, objects, shards.
//! - [`id_map`] — maps by these, that spend nothing on hashing them again.
//! - [`slots`] — which shard owns them: a map with an epoch.
//! - [`time`] — [`time::Instant`], nanoseconds handed in by whoever may look at a clock.
//! - [`random`] — seeded streams that fork by name.
//! - [`resources`] — fixed-point amounts that never drift.
//! - [`devices`] — numbered devices, whole or shared.
//! - [`disk`] — the [`disk::Disk`] trait, its real twin, and the simulated one that forgets
//!   what was not synced. [`recorded_disk`] replays what a power cut may leave, for tests.
//! - [`mutants`] — bugs that the simulator plants; not there in any other build.

pub mod devices;
pub mod disk;
pub mod id_map;
pub mod ids;
pub mod mutants;
pub mod random;
pub mod recorded_disk;
pub mod resources;
pub mod sim_disk;
pub mod slots;
pub mod time;

pub use id_map::IdMap;
pub use ids::{GroupId, Incarnation, JobId, ObjectId, RunId, ShardId, TaskId, TaskPrefix};
pub use resources::Resources;
pub use slots::{SlotMap, SlotSet};
pub use time::Instant;
