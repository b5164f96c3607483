//! The values of a program as the SDK carries them: a hash that says all, references, and bytes to fill the
//! length, which follow from the hash, so that a byte that is not where it belongs shows.

use crate::mix::mix;
use crate::program;
use mobula::{Blob, ObjectRef};
use mobula_base::ObjectId;
use serde::{Deserialize, Serialize};

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
    /// A value of so many bytes.
    pub fn new(hash: u64, bytes: usize, refs: Vec<ObjectRef<Content>>) -> Self {
        Content { hash, refs, fill: fill(hash, bytes).into() }
    }

    /// What is wrong with its bytes, if anything is.
    pub fn torn(&self) -> Option<String> {
        let (hash, len) = (self.hash, self.fill.len());
        (self.fill[..] != fill(hash, len)[..])
            .then(|| format!("a value of {len} bytes is not what its hash {hash:016x} says"))
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
