//! `mobula head`: who the heads are, and changing that.

use crate::args::HeadCommand;
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::commands::machine::system_seed;
use crate::config::{Settings, check_address};
use crate::exit::{self, Failure, Outcome};
use crate::output::Output;
use crate::say;
use mobula_gcs::Client;
use mobula_proto::{ChangeHeadsRequest, HeadsReply};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Pause between looks at a change that is under way.
const LOOK: Duration = Duration::from_millis(200);

/// Runs a subcommand.
pub fn run(settings: &Settings, command: &HeadCommand) -> Outcome {
    let output = settings.output;
    match command {
        HeadCommand::List => with_client(settings, async |client| list(output, &client).await),
        HeadCommand::Add { address, wait } => {
            check_address(address).map_err(Failure::usage)?;
            change(settings, ChangeHeadsRequest { add: address.clone(), ..Default::default() }, *wait)
        }
        HeadCommand::Remove { head, wait } => {
            change(settings, ChangeHeadsRequest { remove: *head, ..Default::default() }, *wait)
        }
        HeadCommand::Replace { old, new, wait } => {
            check_address(new).map_err(Failure::usage)?;
            let request = ChangeHeadsRequest { add: new.clone(), remove: *old, ..Default::default() };
            change(settings, request, *wait)
        }
        HeadCommand::Recover(command) => crate::commands::recover::run(settings, command),
        HeadCommand::Drain { head, undo, wait } => drain(settings, *head, *undo, *wait),
    }
}

#[derive(Serialize)]
struct JsonHeads {
    cluster: String,
    /// Level of formats that it writes.
    format: u32,
    heads: Vec<JsonHead>,
    change: Option<JsonChange>,
}

#[derive(Serialize)]
struct JsonHead {
    head: u64,
    address: String,
    drained: bool,
    /// Whether a process has taken this place.
    joined: bool,
    answers: bool,
    shards_led: Vec<u32>,
}

#[derive(Serialize)]
struct JsonChange {
    add: Option<u64>,
    remove: Option<u64>,
    waiting: Vec<String>,
}

async fn list(output: Output, client: &Client) -> Outcome {
    let reply = client.heads_table(DEADLINE).await.map_err(failed)?;
    let mut heads = Vec::new();
    for member in &reply.members {
        let shards = client.shards_of(&member.address).await.ok().filter(|said| said.head == member.head);
        let led = shards.iter().flat_map(|said| &said.shards).filter(|shard| shard.here);
        heads.push(JsonHead {
            head: member.head,
            address: member.address.clone(),
            drained: member.drained,
            joined: member.claimed,
            answers: shards.is_some(),
            shards_led: led.map(|shard| shard.shard).collect(),
        });
    }
    let change = reply.table.as_ref().and_then(|table| table.plan.as_ref()).map(|plan| JsonChange {
        add: Some(plan.add).filter(|head| *head != 0),
        remove: plan.remove.as_ref().map(|old| old.head),
        waiting: reply.waiting.clone(),
    });
    let (cluster, format) = (format!("{:016x}", reply.cluster), reply.level.max(1));
    let json = JsonHeads { cluster, format, heads, change };
    say!(output, "cluster {}, writes format {format}", json.cluster);
    for head in &json.heads {
        let state = match (head.answers, head.joined) {
            (true, _) if head.drained => "drained",
            (true, _) => "up",
            (false, true) => "does not answer",
            (false, false) => "not joined yet",
        };
        say!(
            output,
            "  head {:<3} {:<22} {:<15} leads {:?}",
            head.head,
            head.address,
            state,
            head.shards_led
        );
    }
    if let Some(change) = &json.change {
        say!(output, "change under way: {}", said(&reply));
        change.waiting.iter().for_each(|why| say!(output, "  {why}"));
    }
    output.data(&json);
    Ok(exit::OK)
}

fn said(reply: &HeadsReply) -> String {
    let plan = reply.table.as_ref().and_then(|table| table.plan.as_ref());
    plan.map(mobula_gcs::core::heads::say).unwrap_or_default()
}

#[derive(Serialize)]
struct JsonOutcome {
    done: bool,
    head: Option<u64>,
    waiting: Vec<String>,
}

/// Asks for a change until it is done. The same request is repeated, so nothing happens twice.
fn change(settings: &Settings, request: ChangeHeadsRequest, wait: u64) -> Outcome {
    let output = settings.output;
    let number = system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
    let request = ChangeHeadsRequest { request: number.max(1), ..request };
    with_client(settings, async |client| {
        let until = Instant::now() + Duration::from_secs(wait);
        let (mut waiting, mut shown) = (Vec::new(), Vec::new());
        loop {
            let reply = client.change_heads(request.clone(), DEADLINE).await.map_err(failed)?;
            let head = Some(reply.head).filter(|head| *head != 0);
            if reply.finished {
                match head {
                    Some(head) if !request.add.is_empty() => {
                        say!(output, "done: head {head} at {} is a member", request.add);
                    }
                    _ => say!(output, "done: head {} is no member any more", request.remove),
                }
                output.data(&JsonOutcome { done: true, head, waiting: Vec::new() });
                return Ok(exit::OK);
            }
            if waiting != shown {
                for why in &waiting {
                    say!(output, "waiting: {why}");
                }
                shown = waiting;
            }
            if Instant::now() >= until {
                output.data(&JsonOutcome { done: false, head, waiting: shown.clone() });
                return Err(format!(
                    "not done within {wait} s, it goes on by itself ({}): `mobula head list` shows how far it is; \
                     `mobula head remove` of a head that is being added gives it up",
                    if shown.is_empty() { "it has just begun".to_owned() } else { shown.join("; ") }
                )
                .into());
            }
            tokio::time::sleep(LOOK).await;
            waiting = client.heads_table(DEADLINE).await.map_err(failed)?.waiting;
        }
    })
}

/// Marks a head and waits until it leads nothing.
fn drain(settings: &Settings, head: u64, undo: bool, wait: u64) -> Outcome {
    let output = settings.output;
    with_client(settings, async |client| {
        let request = ChangeHeadsRequest { drain: head, undo, ..Default::default() };
        client.change_heads(request, DEADLINE).await.map_err(failed)?;
        let until = Instant::now() + Duration::from_secs(wait);
        loop {
            let members = client.heads_table(DEADLINE).await.map_err(failed)?.members;
            let address = members.iter().find(|m| m.head == head).map(|m| m.address.clone());
            let led: Vec<String> = match client.shards_of(&address.unwrap_or_default()).await {
                Ok(said) => said.shards.iter().filter(|s| s.here).map(|s| s.shard.to_string()).collect(),
                // Whoever does not answer leads nothing for long.
                Err(_) => Vec::new(),
            };
            if undo || led.is_empty() {
                let what = if undo { "may lead again" } else { "leads nothing" };
                say!(output, "done: head {head} {what}");
                output.data(&JsonOutcome { done: true, head: Some(head), waiting: Vec::new() });
                return Ok(exit::OK);
            }
            if Instant::now() >= until {
                return Err(
                    format!("head {head} still leads shards {} after {wait} s", led.join(", ")).into()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    })
}
