//! The values of a run as the SDK carries them: a hash that says all, references, and bytes to fill the
//! length, which follow from the hash, so that a byte that is not where it belongs shows.

use super::state;
use mobula::{Blob, ObjectRef};
use mobula_base::ObjectId;
use mobula_sim_tests::core::mix;
use mobula_sim_tests::core::program::{self, INLINE_MAX};
use serde::{Deserialize, Serialize};

/// Most large values are cut to a part of what their length is beyond the inline limit: the wire is what
/// costs time here.
const LARGE_DIVISOR: u64 = 24;
/// One large value in so many has its full length.
const FULL_LENGTH: u64 = 16;

/// A value.
#[derive(Clone, Serialize, Deserialize)]
pub struct Content {
    /// Says all.
    pub hash: u64,
    /// References that lie in it.
    pub refs: Vec<ObjectRef<Content>>,
    fill: Blob,
}

impl Content {
    /// A value of a length.
    pub fn new(hash: u64, len: u64, refs: Vec<ObjectRef<Content>>) -> Self {
        Content { hash, refs, fill: fill(hash, bytes(hash, len)).into() }
    }

    /// It was read; whether it is whole is looked at.
    pub fn read(self) -> Self {
        if self.fill[..] != fill(self.hash, self.fill.len())[..] {
            let (hash, len) = (self.hash, self.fill.len());
            let text = format!("a value of {len} bytes is not what its hash {hash:016x} says");
            state::with(|state| _ = state.torn.get_or_insert(text));
        }
        self
    }

    /// As the interpreter and its judges have it.
    pub fn known(&self) -> program::Content {
        program::Content { hash: self.hash, len: self.fill.len() as u64, mood: 0, refs: self.ids() }
    }

    /// What lies in it.
    pub fn ids(&self) -> Vec<ObjectId> {
        self.refs.iter().map(ObjectRef::id).collect()
    }
}

/// How many bytes stand for a length. Small stays small and large stays large.
fn bytes(hash: u64, len: u64) -> usize {
    let beyond = len.saturating_sub(INLINE_MAX);
    match beyond {
        0 => len.min(2_000) as usize,
        _ if hash.is_multiple_of(FULL_LENGTH) => len as usize,
        _ => (INLINE_MAX + beyond / LARGE_DIVISOR + 1) as usize,
    }
}

fn fill(hash: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = mix(hash, 0x66696c6c) | 1;
    while bytes.len() < len {
        // xorshift: a byte that moved shows, and it is as fast as memory.
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
