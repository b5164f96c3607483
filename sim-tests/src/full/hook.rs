//! What replicas apply goes to the judges: to those of the log, and once for each entry to those of what the
//! entries mean.

use super::{about, state};
use crate::store::docket::Docket;
use crate::trace;
use mobula_gcs::hook::{EntryId, Hook};
use mobula_proto as proto;
use mobula_proto::item_outcome::Outcome;
use mobula_proto::task_id;
use prost::Message;
use proto::call::Op as CallOp;
use proto::command::Op;
use proto::reply::Reply as Answer;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// One head's line to the judges.
pub struct HeadHook {
    /// The head.
    pub head: u64,
    /// The judges of the log.
    pub docket: Docket,
    /// What all heads' entries have said of nodes.
    pub nodes: Nodes,
}

/// Lives of nodes, as the log has them.
#[derive(Clone, Default)]
pub struct Nodes(Arc<Mutex<Lives>>);

#[derive(Default)]
struct Lives {
    fenced: BTreeSet<(u32, u64)>,
    /// Joins by name.
    joins: BTreeMap<String, u64>,
    deaths: u64,
}

impl Nodes {
    /// Deaths declared so far.
    pub fn deaths(&self) -> u64 {
        self.0.lock().expect("one thread").deaths
    }
}

impl Hook for HeadHook {
    fn applied(&self, shard: u32, entry: EntryId, command: &[u8], reply: &[u8]) {
        let first = self.docket.judges().commit.applied(self.head, shard, entry, command);
        match first {
            Ok(true) => {
                let decoded = (proto::Command::decode(command), proto::Reply::decode(reply));
                if let (Ok(command), Ok(reply)) = decoded {
                    self.nodes.applied(shard, entry.index, &command, &reply);
                }
            }
            Ok(false) => {}
            Err(what) => self.docket.judges().file("commit", Err(what)),
        }
    }

    fn installed(&self, shard: u32, entry: EntryId) {
        self.docket.installed(self.head, shard, entry);
    }

    fn granted(&self, shard: u32, term: u64, candidate: u64) {
        self.docket.granted(self.head, shard, term, candidate);
    }
}

impl Nodes {
    fn applied(&self, shard: u32, index: u64, command: &proto::Command, reply: &proto::Reply) {
        about::applied(shard, index, command, reply);
        match (&command.op, &reply.reply) {
            (Some(Op::Batch(commands)), Some(Answer::Batch(replies))) => {
                for (command, reply) in commands.commands.iter().zip(&replies.replies) {
                    let decoded = (proto::Command::decode(&command[..]), proto::Reply::decode(&reply[..]));
                    if let (Ok(command), Ok(reply)) = decoded {
                        self.applied(shard, index, &command, &reply);
                    }
                }
            }
            (Some(Op::Fence(fence)), _) => {
                self.0.lock().expect("one thread").fenced.insert((shard, fence.incarnation));
            }
            (Some(Op::DeclareDead(dead)), _) => {
                trace::note(format!("{} is declared dead: {}", dead.incarnation, dead.evidence));
                self.0.lock().expect("one thread").deaths += 1;
                state::hit("death declared");
            }
            (Some(Op::Call(proto::Call { op: Some(CallOp::NodeJoin(join)), .. })), _) => {
                self.joined(&join.name)
            }
            (Some(Op::Stream(batch)), _) => {
                let known = (shard, batch.incarnation);
                let is_fenced = self.0.lock().expect("one thread").fenced.contains(&known);
                stream(shard, index, command, reply, is_fenced);
            }
            _ => {}
        }
    }

    fn joined(&self, name: &str) {
        let mut lives = self.0.lock().expect("one thread");
        let joins = lives.joins.entry(name.to_owned()).or_default();
        *joins += 1;
        trace::note(format!("{name} joins, life {joins}"));
        // An earlier life is over, and what it ran.
        if *joins > 1 {
            state::with(|state| {
                state.cause.death();
                state.sometimes.hit("node back after its death");
            });
        }
    }
}

fn stream(shard: u32, index: u64, command: &proto::Command, reply: &proto::Reply, is_fenced: bool) {
    state::with(|state| {
        let state::State { judges, sometimes, cause, .. } = state;
        judges.fenced.before_known(is_fenced);
        judges.applied(shard as usize, index, command, reply, sometimes);
        let Some(Answer::Stream(ack)) = &reply.reply else { return };
        for outcome in &ack.outcomes {
            if let Some(Outcome::Granted(view)) = &outcome.outcome
                && let Ok(task) = task_id(&view.task)
            {
                cause.granted(task, view.attempt);
            }
        }
    });
}
