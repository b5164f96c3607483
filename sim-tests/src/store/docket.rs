//! Where everything that is seen goes: the judges that watch replicas, and the first violation.

use crate::judge::Verdict;
use crate::judge::commit::Commit;
use crate::judge::digest::Digest;
use crate::judge::election::Election;
use crate::judge::guess::Guess;
use crate::judge::slots::Moves;
use crate::judge::watch::Truth;
use mobula_gcs::hook::{EntryId, Hook, Plant};
use mobula_proto as proto;
use prost::Message;
use proto::call::Op as CallOp;
use proto::call_reply::Reply as Called;
use proto::command::Op;
use proto::reply::Reply as Answer;
use proto::slot_command;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// The judges and what they have found.
#[derive(Default)]
pub struct Judges {
    /// See `judge::election`.
    pub election: Election,
    /// See `judge::commit`.
    pub commit: Commit,
    /// See `judge::digest`.
    pub digest: Digest,
    /// See `judge::guess`.
    pub guess: Guess,
    /// All changes of keys.
    pub truth: Truth,
    moves: Moves,
    /// Requests that were answered with a revision: a repetition is no second change.
    answered: BTreeMap<(u32, u64, u64), u64>,
    /// Entries that replicas applied, replays included.
    pub applied: u64,
    first: Option<Verdict>,
}

impl Judges {
    /// Files a judge's finding; only the first counts.
    pub fn file(&mut self, judge: &str, finding: Result<(), String>) {
        if let Err(what) = finding {
            self.first.get_or_insert(Verdict::Safety(format!("{judge}: {what}")));
        }
    }

    /// The first violation.
    pub fn found(&self) -> Option<Verdict> {
        self.first.clone()
    }
}

/// The judges, shared by all that is simulated.
#[derive(Clone, Default)]
pub struct Docket(Arc<Mutex<Judges>>);

impl Docket {
    /// The judges.
    pub fn judges(&self) -> MutexGuard<'_, Judges> {
        self.0.lock().expect("one thread")
    }

    /// A head has installed a snapshot up to an entry.
    pub fn installed(&self, head: u64, shard: u32, entry: EntryId) {
        let mut judges = self.judges();
        let finding = judges.commit.installed(head, shard, entry);
        judges.file("commit", finding);
    }

    /// A head has given its vote.
    pub fn granted(&self, head: u64, shard: u32, term: u64, candidate: u64) {
        let mut judges = self.judges();
        let finding = judges.election.granted(head, shard, term, candidate);
        judges.file("election", finding);
    }
}

/// One head's line to the judges.
pub struct HeadHook {
    /// The head.
    pub head: u64,
    /// The judges.
    pub docket: Docket,
    /// The bug that is planted in this head.
    pub plant: Option<Plant>,
}

impl Hook for HeadHook {
    fn applied(&self, shard: u32, entry: EntryId, command: &[u8], reply: &[u8]) {
        let judges = &mut *self.docket.judges();
        judges.applied += 1;
        match judges.commit.applied(self.head, shard, entry, command) {
            Ok(true) => {
                for seen in changes(command, reply) {
                    match seen {
                        Seen::Change((session, seq), change) => {
                            let known = judges.answered.insert((shard, session, seq), change.revision);
                            if known != Some(change.revision) {
                                let finding = judges.truth.add(shard, change);
                                judges.file("watch", finding);
                            }
                        }
                        Seen::Slots(op) => judges.moves.applied(shard, op, &mut judges.truth),
                    }
                }
            }
            Ok(false) => {}
            Err(what) => judges.file("commit", Err(what)),
        }
    }

    fn installed(&self, shard: u32, entry: EntryId) {
        self.docket.installed(self.head, shard, entry);
    }

    fn granted(&self, shard: u32, term: u64, candidate: u64) {
        self.docket.granted(self.head, shard, term, candidate);
    }

    fn has(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }
}

/// What an entry does to keys.
enum Seen {
    /// A request by session and number, and the change that it was answered with.
    Change((u64, u64), proto::KvChange),
    /// Slots move.
    Slots(slot_command::Op),
}

/// The requests for changes of keys in an entry, by its command and its replies, and moves of slots.
fn changes(command: &[u8], reply: &[u8]) -> Vec<Seen> {
    let mut changes = Vec::new();
    let (Ok(command), Ok(reply)) = (proto::Command::decode(command), proto::Reply::decode(reply)) else {
        return changes;
    };
    match (command.op, reply.reply) {
        (Some(Op::Batch(commands)), Some(Answer::Batch(replies))) => {
            for (command, reply) in commands.commands.iter().zip(&replies.replies) {
                changes.extend(self::changes(command, reply));
            }
        }
        (
            Some(Op::Call(call)),
            Some(Answer::Call(proto::CallReply { reply: Some(Called::Revision(revision)) })),
        ) => {
            let request = (call.session, call.seq);
            let change = match call.op {
                Some(CallOp::KvPut(put)) => {
                    proto::KvChange { key: put.key, value: put.value, revision, deleted: false }
                }
                Some(CallOp::KvDelete(delete)) if revision > 0 => {
                    proto::KvChange { key: delete.key, revision, deleted: true, ..Default::default() }
                }
                _ => return changes,
            };
            changes.push(Seen::Change(request, change));
        }
        (Some(Op::Slots(command)), _) => changes.extend(command.op.map(Seen::Slots)),
        _ => {}
    }
    changes
}
