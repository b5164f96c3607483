//! Connections: listen, dial, frames, gRPC over any transport.
//!
//! Production uses [`tcp::TcpNet`]; the simulator brings its own [`Net`] and runs the same code
//! above it. This crate does not know what any message means.
//!
//! Read it in this order:
//!
//! - [`seam`] — the [`Net`] and [`Listener`] traits and the boxed byte stream.
//! - [`tcp`] — the real network.
//! - [`frame`] — length-prefixed messages with adaptive batching: whatever has queued up is one write;
//!   [`written`] — the same, for messages that are encoded as they come.
//! - [`weather`] — what may go wrong; [`faults`] — a network on which it does; [`calls`] — calls that go wrong, method by
//!   method.
//! - [`auth`] — the cluster token; [`tls`] — a guarded network: TLS, token or both.
//! - [`grpc`] — tonic channels and servers over a [`Net`].
//! - [`front`] — several protocols on one port; [`http`] — what every port answers beside its own.
//! - [`pipe`] — many requests over one gRPC stream.

pub mod auth;
pub mod calls;
pub mod faults;
pub mod frame;
pub mod front;
pub mod grpc;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod http;
pub mod pipe;
pub mod seam;
pub mod tcp;
pub mod tls;
pub mod weather;
pub mod written;

pub use seam::{BoxFuture, Listener, Net, Stream};
