//! Simulation of Mobula: this library is the core simulation, which needs no runtime, and [`scale`], which
//! measures how placement behaves in clusters of any size, and [`groups`], which is about placement groups; the program `mobula-sim` adds the whole stack under a
//! simulated network.

pub mod core;
pub mod groups;
pub mod linger;
pub mod mutants;
pub mod processes;
pub mod scale;
