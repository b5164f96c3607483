//! What drivers and workers want of placement groups, passed on to the control store.

use crate::control::{CALL_DEADLINE, RETRY_AFTER};
use crate::daemon::Life;
use crate::links::{LEVEL_PATIENCE, Links};
use mobula_base::JobId;
use mobula_gcs::Client;
use mobula_net::written::Written;
use mobula_proto::{
    DaemonMsg, Failure, FailureKind, GROUP_BYTES_MAX, GroupAnswer, GroupAsk, GroupCreate, GroupRemove,
    LEVEL_GROUPS, call, call_reply, daemon_msg, group_ask,
};
use mobula_scheduler::{ClientId, Event};
use prost::Message;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// Requests for groups that one node has under way at most.
pub const ASKS_MAX: usize = 256;
fn refuse(outbox: &Written<DaemonMsg>, ask: u64, message: String) {
    let failure = Some(Failure::new(FailureKind::FailureBadArguments, message));
    answer(outbox, GroupAnswer { ask, revision: 0, failure });
}

fn answer(outbox: &Written<DaemonMsg>, answer: GroupAnswer) {
    outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::GroupAnswer(answer)) });
}

impl Life {
    /// A client asks for a group, or for word of one.
    pub(crate) fn group_asked(&mut self, client: ClientId, job: JobId, asked: GroupAsk) -> Option<Event> {
        let outbox = self.open.get(&client)?.outbox.clone();
        let GroupAsk { ask, what } = asked;
        let op = match what? {
            group_ask::What::Watch(group) => return Some(Event::WatchGroup { client, group }),
            group_ask::What::Create(create) => call::Op::GroupCreate(GroupCreate { job: job.0, ..create }),
            group_ask::What::Remove(remove) => call::Op::GroupRemove(GroupRemove { job: job.0, ..remove }),
        };
        if op_bytes(&op) > GROUP_BYTES_MAX {
            refuse(
                &outbox,
                ask,
                format!("the request takes more than {GROUP_BYTES_MAX} bytes: use fewer bundles"),
            );
            return None;
        }
        let Ok(permit) = self.group_asks.clone().try_acquire_owned() else {
            let why =
                format!("{ASKS_MAX} requests for placement groups are under way at this node: ask again");
            refuse(&outbox, ask, why);
            return None;
        };
        let (client, links) = (self.control.client.clone(), self.links.clone());
        self.tasks.spawn(async move {
            if knows_groups(&links).await {
                let reply = ask_store(&client, op).await;
                answer(&outbox, GroupAnswer { ask, ..reply });
            } else {
                let why = "not all heads of this cluster know placement groups yet: upgrade them first";
                refuse(&outbox, ask, why.into());
            }
            drop(permit);
        });
        None
    }
}

fn op_bytes(op: &call::Op) -> usize {
    match op {
        call::Op::GroupCreate(create) => create.encoded_len(),
        _ => 0,
    }
}

/// Whether the cluster's level of formats is high enough. A node that has just started may not know it yet.
async fn knows_groups(links: &Links) -> bool {
    let until = Instant::now() + LEVEL_PATIENCE;
    while links.level.load(Ordering::Relaxed) < LEVEL_GROUPS {
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
    true
}

/// Asks until it is answered: whoever repeats it is answered as the first time.
async fn ask_store(client: &Client, op: call::Op) -> GroupAnswer {
    loop {
        match client.call(op.clone(), 0, CALL_DEADLINE).await.map(|reply| reply.reply) {
            Ok(Some(call_reply::Reply::Revision(revision))) => {
                return GroupAnswer { revision, ..GroupAnswer::default() };
            }
            Ok(Some(call_reply::Reply::Failure(failure))) => {
                return GroupAnswer { failure: Some(failure), ..GroupAnswer::default() };
            }
            Ok(_) | Err(_) => tokio::time::sleep(RETRY_AFTER).await,
        }
    }
}
