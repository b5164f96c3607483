//! Backups, and data directories made of them: a new cluster of one head, under a new id.
//!
//! Read it in this order: [`archive`] (the file), [`seed`] (a data directory from dumps), [`offline`]
//! (what is left on the disk of a head that cannot run because a majority is gone).

pub mod archive;
pub mod offline;
pub mod seed;
