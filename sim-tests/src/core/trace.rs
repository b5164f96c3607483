//! What happened, as one number: a hash over time, ordinal, place, kind and payload of every event. Two
//! runs of a seed must agree in it. On request, also as text.

use mobula_base::Instant;
use mobula_chaos::mix::mix;

/// The running hash, and the lines if anybody wants them.
pub struct Trace {
    hash: u64,
    events: u64,
    lines: Option<Vec<Line>>,
}

/// Something that happened, for people.
#[derive(Clone, Debug)]
pub struct Line {
    /// When.
    pub at: Instant,
    /// After so many events of the trace.
    pub ordinal: u64,
    /// What kind.
    pub kind: &'static str,
    /// Which machine; 1000 and more: which shard.
    pub place: u64,
    /// Which life of the machine, or term of the shard.
    pub life: u64,
    /// In words.
    pub text: String,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Line { at, ordinal, kind, place, life, text } = self;
        let seconds = at.0 as f64 / 1e9;
        write!(f, "{seconds:>11.6} {ordinal:>7} {kind:<11} {place:>4} {life:>4} {text}")
    }
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

impl Trace {
    /// Nothing has happened.
    pub fn new(with_lines: bool) -> Self {
        Trace { hash: 0, events: 0, lines: with_lines.then(Vec::new) }
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
        let ordinal = self.events;
        if let Some(lines) = &mut self.lines {
            let text = format!("{payload:016x} {}", text());
            lines.push(Line { at, ordinal, kind, place, life, text });
        }
    }

    /// A detail for people: it follows from what is noted, and is no part of the hash.
    pub fn detail(&mut self, at: Instant, place: u64, life: u64, text: Option<(&'static str, String)>) {
        if let (Some(lines), Some((kind, text))) = (&mut self.lines, text) {
            lines.push(Line { at, ordinal: self.events, kind, place, life, text });
        }
    }

    /// Whether details are wanted.
    pub fn wants_details(&self) -> bool {
        self.lines.is_some()
    }

    /// The hash of all so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How much happened.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines, if they were asked for.
    pub fn lines(&self) -> Option<&[Line]> {
        self.lines.as_deref()
    }
}
