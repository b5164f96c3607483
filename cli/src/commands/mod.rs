//! One file for each command.

pub mod access;
pub mod ask;
pub mod config;
pub mod daemon;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod fault_switch;
pub mod gpus;
pub mod head;
pub mod machine;
pub mod missing;
pub mod recover;
pub mod run;
pub mod shard;
pub mod sim;
pub mod snapshot;
pub mod start;
pub mod status;
pub mod stop;
pub mod up;
pub mod verdict;
