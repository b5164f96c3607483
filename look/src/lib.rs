//! Looking at a cluster: lists, lineage, time line, explanations, and the web page that shows them.
//!
//! Everything is asked of the heads and the living nodes when somebody wants to know it; nothing is stored, nothing is
//! decided. This crate must not change anything in a cluster, nor know how a node or a head works inside: it asks what
//! `proto` lets anybody ask.
//!
//! Read it in this order:
//!
//! - [`gather`] — [`Look`]: who is asked, and how long that may take; [`observe`] — heads; [`records`] — the control store.
//! - [`names`] — what people call things; [`rows`] — lists; [`filter`] — which rows, and which one.
//! - [`verdict`] — is the cluster well? [`state`] — all of it at one moment.
//! - [`happened`] — events in words; [`story`] — why something waits, or was lost.
//! - [`lineage`] — what an object was made of; [`timeline`] — what ran where, when.
//! - [`page`] — all of that over HTTP. [`log`] — what a daemon has logged, which it serves itself.

pub mod filter;
pub mod gather;
pub mod happened;
pub mod lineage;
pub mod log;
pub mod names;
pub mod observe;
pub mod page;
pub mod records;
pub mod rows;
pub mod state;
pub mod story;
pub mod timeline;
pub mod verdict;

pub use gather::Look;
