//! What the cluster says of what was done to it: `events` and `explain` must name every fault that took something away.
//! (No property of the simulator: there no operator asks.)

use super::{Class, Judged};
use crate::chaos::fault::{Fault, Outcome};
use mobula_chaos::Kind;
use mobula_gcs::Client;
use mobula_look::happened::cause_of;
use mobula_net::tcp::TcpNet;
use mobula_proto::{Event, EventKind};
use std::sync::Arc;
use std::time::Duration;

/// How long the heads may take to tell.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every event that the heads remember, oldest first.
///
/// # Errors
/// No head answers.
pub fn events(heads: &[String]) -> Result<Vec<Event>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot ask for events: {e}"))?;
    runtime.block_on(async {
        let client = Client::new(Arc::new(TcpNet), heads.to_vec(), 5);
        client.connect(PATIENCE).await.map_err(|e| e.to_string())?;
        let (mut all, mut above) = (Vec::new(), 0);
        loop {
            let reply = client.events(above, Duration::ZERO, PATIENCE).await.map_err(|e| e.to_string())?;
            let Some(last) = reply.events.last() else { return Ok(all) };
            above = last.seq;
            let is_last = above >= reply.last;
            all.extend(reply.events);
            if is_last {
                return Ok(all);
            }
        }
    })
}

/// Looks for each fault in the log, and writes into it what the log says.
pub fn judge(faults: &mut [Fault], events: &[Event]) -> Judged {
    let mut objection = None;
    let mut checked = 0;
    for fault in faults.iter_mut().filter(|fault| fault.outcome == Outcome::Installed) {
        fault.told = told(fault, events);
        if must_be_told(fault) {
            checked += 1;
            if fault.told.is_empty() && objection.is_none() {
                objection = Some(format!(
                    "nothing in the log of events says that at {:.1} s {}",
                    fault.at_s, fault.text
                ));
            }
        }
    }
    Judged::of("told", "explain", Class::Safety, checked).objecting(objection)
}

/// That the driver's node was declared dead, although nothing kills it, and what proved it.
pub fn driver_died(events: &[Event], life: Option<u64>) -> Judged {
    let is_it = |event: &&Event| event.kind() == EventKind::EventNodeDied && Some(event.incarnation) == life;
    Judged::of("driver", "harness", Class::Unknown, 1).objecting(events.iter().find(is_it).map(text))
}

/// Whether a fault must show in the log: a node that was killed is dead, and a head that was killed and led is followed.
fn must_be_told(fault: &Fault) -> bool {
    match fault.kind {
        Kind::Crash => !fault.lives.is_empty(),
        Kind::HeadCrash => !fault.led.is_empty(),
        Kind::Copies => !fault.lives.is_empty() || !fault.led.is_empty(),
        _ => false,
    }
}

fn told(fault: &Fault, events: &[Event]) -> Vec<String> {
    let of_node = |event: &&Event| {
        matches!(event.kind(), EventKind::EventNodeDied | EventKind::EventNodeLeft)
            && fault.lives.contains(&event.incarnation)
    };
    let next_of = |(shard, term): &(u32, u64)| {
        let is_next = |event: &&Event| {
            matches!(event.kind(), EventKind::EventElection | EventKind::EventTransfer)
                && event.shard == *shard
                && event.term > *term
        };
        events.iter().filter(is_next).min_by_key(|event| event.term)
    };
    events.iter().filter(of_node).chain(fault.led.iter().filter_map(next_of)).map(text).collect()
}

/// An event in few words.
fn text(event: &Event) -> String {
    let why = cause_of(event.cause()).map_or_else(String::new, |cause| format!(", {cause}"));
    match event.kind() {
        EventKind::EventNodeDied => format!("{} declared dead{why}: {}", event.name, event.evidence),
        EventKind::EventNodeLeft => format!("{} left{why}", event.name),
        EventKind::EventTransfer => format!("shard {} handed to head {}{why}", event.shard, event.head),
        _ => format!("shard {} elected head {} in term {}{why}", event.shard, event.head, event.term),
    }
}
