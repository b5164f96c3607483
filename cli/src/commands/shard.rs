//! `mobula shard`: how the shards stand, and who leads them.

use crate::args::{MoveSlotsArgs, ShardCommand};
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::commands::machine::system_seed;
use crate::config::Settings;
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::say;
use mobula_base::{ShardId, SlotMap, SlotSet};
use mobula_gcs::Client;
use mobula_proto::{ShardInfo, SlotsReply, StartSlotPlan, slot_rows};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Pause between looks whether a move is done.
const LOOK: Duration = Duration::from_millis(200);

/// Runs a subcommand.
pub fn run(settings: &Settings, command: &ShardCommand) -> Outcome {
    let output = settings.output;
    match command {
        ShardCommand::List => with_client(settings, async |client| list(output, &client).await),
        ShardCommand::Verify => {
            let seed = system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
            with_client(settings, async |client| verify(output, &client, seed).await)
        }
        ShardCommand::MoveSlots(args) => move_slots(settings, args),
        &ShardCommand::MoveLeader { shard, head } => with_client(settings, async |client| {
            client.move_leader(shard, head, DEADLINE).await.map_err(failed)?;
            say!(output, "done: head {head} leads shard {shard}");
            output.data(&JsonMoved { shard, leader: head });
            Ok(exit::OK)
        }),
    }
}

#[derive(Serialize)]
struct JsonMoved {
    shard: u32,
    leader: u64,
}

#[derive(Serialize)]
struct JsonShard {
    shard: u32,
    /// How many slots it owns, and which.
    slots: u32,
    slot_rows: String,
    /// Epoch of the map that says so.
    slot_map: u64,
    /// The move that it takes part in, for people.
    moving: Option<String>,
    leader: Option<u64>,
    term: u64,
    last_log: u64,
    joint: bool,
    replicas: Vec<JsonReplica>,
}

#[derive(Serialize)]
struct JsonReplica {
    head: u64,
    voter: bool,
    answers: bool,
    /// As the replica itself says; `None` when it does not answer.
    last_log: Option<u64>,
    applied: Option<u64>,
    /// Entries behind the leader.
    lag: Option<u64>,
}

async fn list(output: Output, client: &Client) -> Outcome {
    let members = client.heads_table(DEADLINE).await.map_err(failed)?.members;
    let mut said: Vec<(u64, Vec<ShardInfo>)> = Vec::new();
    for member in &members {
        if let Ok(reply) = client.shards_of(&member.address).await {
            said.push((reply.head, reply.shards));
        }
    }
    let slots = client.slot_table(DEADLINE).await.map_err(failed)?;
    let map = read_map(&slots)?;
    let mut shards: Vec<JsonShard> = (0..client.shards()).map(|shard| one(shard, &said, &map)).collect();
    let moving = slots.plan.as_ref().map(mobula_gcs::core::slot_table::say);
    let moves = |at: u32| slots.plan.as_ref().is_some_and(|plan| plan.from == at || plan.to == at);
    for shard in shards.iter_mut().filter(|shard| moves(shard.shard)) {
        shard.moving.clone_from(&moving);
    }
    for shard in &shards {
        let leader = shard.leader.map_or("no leader".to_owned(), |head| format!("head {head} leads"));
        let joint = if shard.joint { ", its members are being changed" } else { "" };
        say!(
            output,
            "shard {}: {leader}, term {}, log {}, {} slots ({}){joint}",
            shard.shard,
            shard.term,
            shard.last_log,
            shard.slots,
            if shard.slots == 0 { "none" } else { &shard.slot_rows }
        );
        for replica in &shard.replicas {
            let role = if replica.voter { "" } else { " (learner)" };
            match (replica.last_log, replica.applied, replica.lag) {
                (Some(log), Some(applied), lag) => say!(
                    output,
                    "  head {}{role}: log {log}, applied {applied}, {} behind",
                    replica.head,
                    lag.unwrap_or(0)
                ),
                _ => say!(output, "  head {}{role}: does not answer", replica.head),
            }
        }
    }
    say!(output, "slot map: epoch {}", map.epoch());
    if let Some(moving) = &moving {
        say!(output, "moving {moving}");
        say!(output, "  until {}", slots.waiting);
    }
    let all_led = shards.iter().all(|shard| shard.leader.is_some());
    output.data(&shards);
    Ok(if all_led { exit::OK } else { exit::FAILED })
}

fn read_map(reply: &SlotsReply) -> Result<SlotMap, Failure> {
    let map = reply.map.as_ref().map(mobula_proto::SlotMap::read);
    map.and_then(Result::ok).ok_or_else(|| "the heads answered without a slot map".to_owned().into())
}

#[derive(Serialize)]
struct JsonSlotsMoved {
    done: bool,
    epoch: u64,
    from: u32,
    to: u32,
}

/// Asks for a move until it is done. The same request is repeated, so nothing happens twice.
fn move_slots(settings: &Settings, args: &MoveSlotsArgs) -> Outcome {
    let output = settings.output;
    let number = system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
    let (from, to, wait) = (args.from, args.to, args.wait);
    let slots = match &args.slots {
        None => SlotSet::default(),
        Some(text) => SlotSet::parse(text).ok_or_else(|| {
            Failure::usage(format!("--slots {text:?}: give rows such as 12-40,77, below 1024"))
        })?,
    };
    let count = args.count.unwrap_or(0);
    let start = StartSlotPlan { request: number.max(1), from, to, slots: slot_rows(&slots), count };
    with_client(settings, async |client| {
        let until = Instant::now() + Duration::from_secs(wait);
        let mut shown = String::new();
        loop {
            let reply = client.move_slots(start.clone(), DEADLINE).await.map_err(failed)?;
            let done = reply.finished;
            if done {
                say!(output, "done: shard {to} owns them, slot map {}", reply.epoch);
            }
            if done || Instant::now() >= until {
                output.data(&JsonSlotsMoved { done, epoch: reply.epoch, from, to });
            }
            if done {
                return Ok(exit::OK);
            }
            if Instant::now() >= until {
                return Err(format!(
                    "not done within {wait} s, it goes on by itself (until {shown}): `mobula shard list` shows \
                     how far it is"
                )
                .into());
            }
            tokio::time::sleep(LOOK).await;
            let waiting = client.slot_table(DEADLINE).await.map_err(failed)?.waiting;
            if waiting != shown && !waiting.is_empty() {
                say!(output, "waiting until {waiting}");
                shown = waiting;
            }
        }
    })
}

/// One shard, from what all heads say of it.
fn one(shard: u32, said: &[(u64, Vec<ShardInfo>)], map: &SlotMap) -> JsonShard {
    let of = |head: u64| {
        said.iter()
            .find(|(of, _)| *of == head)
            .and_then(|(_, shards)| shards.iter().find(|s| s.shard == shard))
    };
    let all = || said.iter().flat_map(|(_, shards)| shards).filter(|s| s.shard == shard);
    let leader = said.iter().filter_map(|(head, _)| Some((*head, of(*head)?))).filter(|(_, s)| s.here);
    let leader = leader.max_by_key(|(_, s)| s.term);
    let best = leader.map(|(_, info)| info).or_else(|| all().max_by_key(|s| s.term));
    let voters = best.map_or(&[][..], |s| &s.voters);
    let learners = best.map_or(&[][..], |s| &s.learners);
    let last_log = best.map_or(0, |s| s.last_log);
    let replica = |head: &u64| {
        let own = of(*head);
        JsonReplica {
            head: *head,
            voter: voters.contains(head),
            answers: own.is_some(),
            last_log: own.map(|s| s.last_log),
            applied: own.map(|s| s.applied),
            lag: own.map(|s| last_log.saturating_sub(s.applied)),
        }
    };
    let slots = map.slots_of(ShardId(shard));
    JsonShard {
        shard,
        slots: slots.len(),
        slot_rows: slots.to_string(),
        slot_map: map.epoch(),
        moving: None,
        leader: leader.map(|(head, _)| head),
        term: best.map_or(0, |s| s.term),
        last_log,
        joint: best.is_some_and(|s| s.joint),
        replicas: voters.iter().chain(learners).map(replica).collect(),
    }
}

#[derive(Serialize)]
struct JsonVerified {
    same: bool,
    shards: Vec<JsonDigests>,
}

/// What the replicas of a shard say of their states.
#[derive(Serialize)]
pub struct JsonDigests {
    /// Which shard.
    pub shard: u32,
    /// The entry at which they digested them.
    index: u64,
    /// All answered, and the same.
    pub same: bool,
    replicas: Vec<JsonDigest>,
}

impl JsonDigests {
    /// What each said.
    pub fn told(&self) -> String {
        let said =
            |replica: &JsonDigest| replica.digest.clone().or(replica.error.clone()).unwrap_or_default();
        let all: Vec<String> =
            self.replicas.iter().map(|replica| format!("head {} {}", replica.head, said(replica))).collect();
        format!("entry {}: {}", self.index, all.join(", "))
    }
}

#[derive(Serialize)]
struct JsonDigest {
    head: u64,
    digest: Option<String>,
    error: Option<String>,
}

/// Has every replica digest its state at one entry of each shard's log; what they say.
///
/// # Errors
/// A shard does not take the entry, or no head answers.
pub async fn digests(client: &Client, seed: u64) -> Result<Vec<JsonDigests>, mobula_gcs::Error> {
    let members = client.heads_table(DEADLINE).await?.members;
    let mut shards = Vec::new();
    for shard in 0..client.shards() {
        // A number of its own for each shard of each run.
        let id = seed.wrapping_add(u64::from(shard));
        let index = client.checkpoint(shard, id, DEADLINE).await?;
        let mut replicas = Vec::new();
        for member in &members {
            let found = client.digest_of(&member.address, shard, id, DEADLINE).await;
            let (digest, error) = match found {
                Ok((at, digest)) if at == index => (Some(format!("{digest:016x}")), None),
                // A repeated proposal: the later entry is remembered under the same number.
                Ok((at, _)) => (None, Some(format!("digest of entry {at} instead of {index}"))),
                Err(error) => (None, Some(error.to_string())),
            };
            replicas.push(JsonDigest { head: member.head, digest, error });
        }
        let first = replicas.first().and_then(|replica| replica.digest.clone());
        let same = first.is_some() && replicas.iter().all(|replica| replica.digest == first);
        shards.push(JsonDigests { shard, index, same, replicas });
    }
    Ok(shards)
}

/// Compares the digests of all replicas. One that does not answer cannot be compared, which is no
/// success.
async fn verify(output: Output, client: &Client, seed: u64) -> Outcome {
    let shards = digests(client, seed).await.map_err(failed)?;
    for shard in &shards {
        let verdict = if shard.same { "all replicas are the same" } else { "NOT all replicas are the same" };
        say!(output, "shard {}: {verdict} at entry {}", shard.shard, shard.index);
        for replica in &shard.replicas {
            let found = replica.digest.as_ref().or(replica.error.as_ref()).map_or("", String::as_str);
            say!(output, "  head {}: {found}", replica.head);
        }
    }
    let same = shards.iter().all(|shard| shard.same);
    output.data(&JsonVerified { same, shards });
    Ok(if same { exit::OK } else { exit::FAILED })
}
