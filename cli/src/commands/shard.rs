//! `mobula shard`: how the shards stand, and who leads them.

use crate::args::ShardCommand;
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::commands::machine::system_seed;
use crate::config::Settings;
use crate::exit::{self, Outcome};
use crate::output::Output;
use crate::say;
use mobula_gcs::Client;
use mobula_proto::ShardInfo;
use serde::Serialize;

/// Runs a subcommand.
pub fn run(settings: &Settings, command: &ShardCommand) -> Outcome {
    let output = settings.output;
    match *command {
        ShardCommand::List => with_client(settings, async |client| list(output, &client).await),
        ShardCommand::Verify => {
            let seed = system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
            with_client(settings, async |client| verify(output, &client, seed).await)
        }
        ShardCommand::MoveLeader { shard, head } => with_client(settings, async |client| {
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
    let shards: Vec<JsonShard> = (0..client.shards()).map(|shard| one(shard, &said)).collect();
    for shard in &shards {
        let leader = shard.leader.map_or("no leader".to_owned(), |head| format!("head {head} leads"));
        let joint = if shard.joint { ", its members are being changed" } else { "" };
        say!(output, "shard {}: {leader}, term {}, log {}{joint}", shard.shard, shard.term, shard.last_log);
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
    output.data(&shards);
    Ok(if shards.iter().all(|shard| shard.leader.is_some()) { exit::OK } else { exit::FAILED })
}

/// One shard, from what all heads say of it.
fn one(shard: u32, said: &[(u64, Vec<ShardInfo>)]) -> JsonShard {
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
    JsonShard {
        shard,
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

#[derive(Serialize)]
struct JsonDigests {
    shard: u32,
    index: u64,
    same: bool,
    replicas: Vec<JsonDigest>,
}

#[derive(Serialize)]
struct JsonDigest {
    head: u64,
    digest: Option<String>,
    error: Option<String>,
}

/// Compares the digests of all replicas. One that does not answer cannot be compared, which is no
/// success.
async fn verify(output: Output, client: &Client, seed: u64) -> Outcome {
    let members = client.heads_table(DEADLINE).await.map_err(failed)?.members;
    let mut shards = Vec::new();
    for shard in 0..client.shards() {
        // A number of its own for each shard of each run.
        let id = seed.wrapping_add(u64::from(shard));
        let index = client.checkpoint(shard, id, DEADLINE).await.map_err(failed)?;
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
