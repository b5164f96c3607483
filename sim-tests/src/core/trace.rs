//! What happened, as one number: a hash over time, ordinal, place, kind and payload of every event. Two
//! runs of a seed must agree in it. On request, also as text.

use mobula_base::Instant;
use std::fmt::Write as _;

/// The running hash, and the text if anybody wants it.
pub struct Trace {
    hash: u64,
    events: u64,
    text: Option<String>,
}

/// Hashes a name; the names of kinds are the same in every build.
pub const fn name(text: &str) -> u64 {
    let (bytes, mut hash, mut at) = (text.as_bytes(), 0xcbf2_9ce4_8422_2325_u64, 0);
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        at += 1;
    }
    hash
}

/// Mixes two numbers into one.
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = (a.rotate_left(29) ^ b).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z ^ (z >> 29)
}

impl Trace {
    /// Nothing has happened.
    pub fn new(with_text: bool) -> Self {
        Trace { hash: 0, events: 0, text: with_text.then(String::new) }
    }

    /// Something happens at `at`, on behalf of a machine (or shard) in a life (or term).
    pub fn note(
        &mut self,
        at: Instant,
        kind: &'static str,
        place: u64,
        life: u64,
        payload: u64,
        text: impl FnOnce() -> String,
    ) {
        self.events += 1;
        for part in [at.0, self.events, place, life, name(kind), payload] {
            self.hash = mix(self.hash, part);
        }
        if let Some(lines) = &mut self.text {
            let _ = writeln!(
                lines,
                "{at:?} {:>7} {kind:<12} {place} {life} {payload:016x} {}",
                self.events,
                text()
            );
        }
    }

    /// The hash of all so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How much happened.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The text, if it was asked for.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }
}
