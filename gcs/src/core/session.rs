//! Sessions: a client's request happens once, however often it is sent (R12).

use mobula_proto as proto;
use std::collections::BTreeMap;

/// How many sessions are remembered; the one used longest ago goes first.
pub const MAX_SESSIONS: usize = 10_000;

/// The last request of a session and its answer.
#[derive(Clone, Debug)]
pub struct Session {
    /// Sequence number of the last executed request.
    pub last_seq: u64,
    /// The answer to it.
    pub reply: proto::CallReply,
    /// Log index of its last use, for eviction.
    pub used: u64,
}

/// What to do with a request.
pub enum Admission {
    /// New: execute it and [`Sessions::remember`] the answer.
    Execute,
    /// Seen before: this was the answer.
    Repeat(proto::CallReply),
    /// Too old to tell: never a second execution.
    Expired,
}

/// All sessions of a shard.
#[derive(Clone, Default)]
pub struct Sessions {
    by_id: BTreeMap<u64, Session>,
    by_use: BTreeMap<u64, u64>,
}

impl Sessions {
    /// Judges request `seq` of `session`.
    pub fn admit(&self, session: u64, seq: u64) -> Admission {
        match self.by_id.get(&session) {
            Some(known) if known.last_seq == seq => Admission::Repeat(known.reply.clone()),
            Some(known) if known.last_seq + 1 == seq => Admission::Execute,
            None if seq == 1 => Admission::Execute,
            _ => Admission::Expired,
        }
    }

    /// Keeps the answer to an executed request.
    pub fn remember(&mut self, session: u64, entry: Session) {
        self.by_use.insert(entry.used, session);
        if let Some(old) = self.by_id.insert(session, entry) {
            self.by_use.remove(&old.used);
        }
        while self.by_id.len() > MAX_SESSIONS {
            let Some((_, oldest)) = self.by_use.pop_first() else { return };
            self.by_id.remove(&oldest);
        }
    }

    /// All sessions by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Session)> {
        self.by_id.iter().map(|(id, session)| (*id, session))
    }
}
