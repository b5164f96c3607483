//! Sessions: a client's request happens once, however often it is sent (R12).
//!
//! A session is opened by a command and numbered by the log. So a number that is not known is one
//! that was closed, never one that is new, and whatever it asks may have happened: it is refused,
//! and memory stays bounded without a second execution.

use mobula_proto as proto;
use std::collections::BTreeMap;

/// How many sessions are remembered; the one used longest ago goes first.
pub const MAX_SESSIONS: usize = 10_000;

/// The last request of a session and its answer.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// Sequence number of the last executed request, 0 for none.
    pub last_seq: u64,
    /// The answer to it.
    pub reply: proto::CallReply,
    /// When it was last used, in uses of all sessions.
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
    last_id: u64,
    uses: u64,
    /// A planted bug: repetitions execute.
    pub(super) repeats: bool,
}

impl Sessions {
    /// Opens a session; its number.
    pub fn open(&mut self) -> u64 {
        self.last_id += 1;
        self.touch(self.last_id, Session::default());
        while self.by_id.len() > MAX_SESSIONS {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.by_id.remove(&oldest);
        }
        self.last_id
    }

    /// Judges request `seq` of `session`.
    pub fn admit(&self, session: u64, seq: u64) -> Admission {
        match self.by_id.get(&session) {
            Some(known) if self.repeats && known.last_seq == seq && seq > 0 => Admission::Execute,
            Some(known) if known.last_seq + 1 == seq => Admission::Execute,
            Some(known) if known.last_seq == seq && seq > 0 => Admission::Repeat(known.reply.clone()),
            _ => Admission::Expired,
        }
    }

    /// Keeps the answer to an executed request.
    pub fn remember(&mut self, session: u64, seq: u64, reply: proto::CallReply) {
        self.touch(session, Session { last_seq: seq, reply, used: 0 });
    }

    fn touch(&mut self, id: u64, session: Session) {
        self.uses += 1;
        self.by_use.insert(self.uses, id);
        if let Some(old) = self.by_id.insert(id, Session { used: self.uses, ..session }) {
            self.by_use.remove(&old.used);
        }
    }

    /// All sessions by id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Session)> {
        self.by_id.iter().map(|(id, session)| (*id, session))
    }

    /// Sessions opened and used so far, for a dump.
    pub(super) fn counters(&self) -> (u64, u64) {
        (self.last_id, self.uses)
    }

    /// What a dump held.
    pub(super) fn restored(sessions: impl Iterator<Item = (u64, Session)>, counters: (u64, u64)) -> Self {
        let by_id: BTreeMap<u64, Session> = sessions.collect();
        let by_use = by_id.iter().map(|(id, session)| (session.used, *id)).collect();
        Sessions { by_id, by_use, last_id: counters.0, uses: counters.1, repeats: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_evicted_session_never_executes_again_not_even_its_first_request() {
        let mut sessions = Sessions::default();
        let first = sessions.open();
        assert!(matches!(sessions.admit(first, 1), Admission::Execute));
        sessions.remember(first, 1, proto::CallReply::default());
        assert!(matches!(sessions.admit(first, 1), Admission::Repeat(_)));
        for _ in 0..MAX_SESSIONS {
            sessions.open();
        }
        assert_eq!(sessions.by_id.len(), MAX_SESSIONS);
        assert_eq!(sessions.by_use.len(), MAX_SESSIONS);
        for seq in 0..4 {
            assert!(matches!(sessions.admit(first, seq), Admission::Expired));
        }
        // Nor does a number that nobody was given.
        assert!(matches!(sessions.admit(first + MAX_SESSIONS as u64 + 1, 1), Admission::Expired));
    }

    #[test]
    fn the_session_used_longest_ago_goes_first() {
        let mut sessions = Sessions::default();
        let (busy, idle) = (sessions.open(), sessions.open());
        for seq in 1..MAX_SESSIONS as u64 {
            sessions.remember(busy, seq, proto::CallReply::default());
            sessions.open();
        }
        assert!(matches!(sessions.admit(idle, 1), Admission::Expired));
        assert!(matches!(sessions.admit(busy, MAX_SESSIONS as u64), Admission::Execute));
    }
}
