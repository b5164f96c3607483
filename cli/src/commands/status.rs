//! `mobula status`: a verdict first, then the figures it rests on.

use crate::commands::ask::addresses;
use crate::config::Settings;
use crate::exit::Outcome;
use crate::output::{Output, bytes};
use crate::say;
use mobula_gcs::Client;
use mobula_look::observe::observe;
use mobula_look::verdict::{self, Health, Observed, Verdict};
use mobula_proto::{ClusterView, GroupView, NodeView, StatusReply};
use serde::Serialize;
use std::collections::BTreeMap;

/// Asks every known head, and prints what they say. The exit code is the verdict.
pub fn run(settings: &Settings) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot wait for answers: {e}"))?;
    let heads = addresses(settings);
    let client = Client::new(settings.net()?, heads.clone(), 0);
    let observed = runtime.block_on(observe(&client, heads));
    let verdict = verdict::judge(&observed);
    say!(settings.output, "{verdict}");
    table(settings.output, &observed, &verdict);
    settings.output.data(&json(&observed, &verdict));
    Ok(match verdict.health {
        Health::Healthy => 0,
        Health::Degraded => 1,
        Health::Unavailable => 2,
    })
}

fn table(output: Output, observed: &[Observed], verdict: &Verdict) {
    let up: Vec<&StatusReply> = observed.iter().filter_map(|o| o.reply.as_ref().ok()).collect();
    if up.is_empty() {
        return;
    }
    say!(output);
    say!(
        output,
        "heads: {} of {} answer; {} more may fail",
        up.len(),
        observed.len(),
        verdict.heads_may_fail
    );
    for head in observed {
        match &head.reply {
            Ok(reply) => say!(
                output,
                "  {:<22} head {:<2} {:>9}  {} syncs",
                head.address,
                reply.head,
                bytes(reply.resident_bytes),
                reply.syncs
            ),
            Err(why) => say!(output, "  {:<22} no answer: {why}", head.address),
        }
    }
    let Some(view) = verdict::newest_view(observed) else { return };
    say!(output);
    say!(output, "shards:  leader    term  tasks   log at each head");
    for shard in 0..view.shards {
        let replicas: Vec<_> =
            up.iter().filter_map(|r| Some((r.head, r.shards.iter().find(|s| s.shard == shard)?))).collect();
        let leader = verdict::leader(shard, &up).map_or("none".into(), |head| format!("head {head}"));
        let term = replicas.iter().map(|(_, s)| s.term).max().unwrap_or(0);
        let tasks = replicas.iter().map(|(_, s)| s.tasks).max().unwrap_or(0);
        let logs: Vec<String> = replicas
            .iter()
            .map(|(head, s)| match s.stopped.as_str() {
                "" => format!("{head}: {}/{}", s.applied, s.last_log),
                _ => format!("{head}: stopped"),
            })
            .collect();
        say!(output, "  {shard:<6} {leader:<9} {term:<5} {tasks:<7} {}", logs.join("  "));
    }
    let alive: Vec<&NodeView> = view.nodes.iter().filter(|n| n.alive).collect();
    say!(output);
    say!(output, "nodes: {} up, {} gone", alive.len(), view.nodes.len() - alive.len());
    for node in alive {
        say!(
            output,
            "  {:<14} {:<22} {} of {} CPUs free, {} queued, {} of {} used{}",
            node.name,
            node.address,
            f64::from(node.cpu_milli_free) / 1000.0,
            f64::from(node.cpu_milli) / 1000.0,
            node.queued,
            bytes(node.store_bytes_used),
            bytes(node.store_bytes),
            labels(node)
        );
    }
    let running = view.jobs.iter().filter(|j| !j.ended).count();
    say!(output, "jobs: {running} running, {} ended", view.jobs.len() - running);
    groups(output, view);
}

fn is_placed(group: &GroupView) -> bool {
    group.bundles.iter().all(|bundle| bundle.placed)
}

/// Placement groups, and why those that wait do.
fn groups(output: Output, view: &ClusterView) {
    let waiting: Vec<&GroupView> = view.groups.iter().filter(|group| !is_placed(group)).collect();
    if view.groups.is_empty() {
        return;
    }
    let placed = view.groups.len() - waiting.len();
    say!(output, "placement groups: {placed} placed, {} not", waiting.len());
    for group in waiting.iter().take(GROUPS_SHOWN) {
        let why = if group.why.is_empty() { "its nodes are reserving" } else { &group.why };
        say!(output, "  {:016x} of job {:016x}: {why}", group.group, group.job);
    }
    if waiting.len() > GROUPS_SHOWN {
        say!(output, "  and {} more", waiting.len() - GROUPS_SHOWN);
    }
}

/// Groups that are shown with the reason why they wait; the others are counted.
const GROUPS_SHOWN: usize = 10;

/// The same as data.
#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    cluster: Option<String>,
    heads: Vec<JsonHead<'a>>,
    nodes: Vec<JsonNode<'a>>,
    jobs_running: usize,
    jobs_ended: usize,
    placement_groups: Vec<JsonGroup<'a>>,
}

#[derive(Serialize)]
struct JsonGroup<'a> {
    group: String,
    job: String,
    /// Of each bundle, the node where it is placed.
    bundles: Vec<Option<u64>>,
    placed: bool,
    why: &'a str,
}

#[derive(Serialize)]
struct JsonHead<'a> {
    address: &'a str,
    error: Option<&'a str>,
    head: Option<u64>,
    resident_bytes: u64,
    syncs: u64,
    shards: Vec<JsonShard<'a>>,
}

#[derive(Serialize)]
struct JsonShard<'a> {
    shard: u32,
    term: u64,
    leader: u64,
    last_log: u64,
    applied: u64,
    tasks: u64,
    stopped: &'a str,
}

#[derive(Serialize)]
struct JsonNode<'a> {
    name: &'a str,
    address: &'a str,
    incarnation: u64,
    alive: bool,
    cpus: f64,
    cpus_free: f64,
    queued: u32,
    store_bytes_used: u64,
    store_bytes: u64,
    resources: BTreeMap<&'a str, f64>,
    labels: BTreeMap<&'a str, &'a str>,
}

fn json<'a>(observed: &'a [Observed], verdict: &'a Verdict) -> Json<'a> {
    let view = verdict::newest_view(observed);
    let jobs = view.map_or(&[][..], |v| &v.jobs);
    let running = jobs.iter().filter(|j| !j.ended).count();
    Json {
        verdict,
        cluster: view.map(|v| format!("{:016x}", v.cluster)),
        heads: observed.iter().map(json_head).collect(),
        nodes: view.map_or(&[][..], |v| &v.nodes).iter().map(json_node).collect(),
        jobs_running: running,
        jobs_ended: jobs.len() - running,
        placement_groups: view.map_or(&[][..], |v| &v.groups).iter().map(json_group).collect(),
    }
}

fn json_group(group: &GroupView) -> JsonGroup<'_> {
    JsonGroup {
        group: format!("{:016x}", group.group),
        job: format!("{:016x}", group.job),
        bundles: group.bundles.iter().map(|bundle| bundle.placed.then_some(bundle.node)).collect(),
        placed: is_placed(group),
        why: &group.why,
    }
}

fn json_head(observed: &Observed) -> JsonHead<'_> {
    let reply = observed.reply.as_ref();
    JsonHead {
        address: &observed.address,
        error: reply.err().map(String::as_str),
        head: reply.ok().map(|r| r.head),
        resident_bytes: reply.map_or(0, |r| r.resident_bytes),
        syncs: reply.map_or(0, |r| r.syncs),
        shards: reply
            .map_or(&[][..], |r| &r.shards)
            .iter()
            .map(|s| JsonShard {
                shard: s.shard,
                term: s.term,
                leader: s.leader,
                last_log: s.last_log,
                applied: s.applied,
                tasks: s.tasks,
                stopped: &s.stopped,
            })
            .collect(),
    }
}

fn json_node(node: &NodeView) -> JsonNode<'_> {
    JsonNode {
        name: &node.name,
        address: &node.address,
        incarnation: node.incarnation,
        alive: node.alive,
        cpus: f64::from(node.cpu_milli) / 1000.0,
        cpus_free: f64::from(node.cpu_milli_free) / 1000.0,
        queued: node.queued,
        store_bytes_used: node.store_bytes_used,
        store_bytes: node.store_bytes,
        resources: node.resources.iter().map(|r| (r.name.as_str(), r.milli as f64 / 1000.0)).collect(),
        labels: node.labels.iter().map(|l| (l.key.as_str(), l.value.as_str())).collect(),
    }
}

fn labels(node: &NodeView) -> String {
    let labels: Vec<String> = node.labels.iter().map(|l| format!("{}={}", l.key, l.value)).collect();
    if labels.is_empty() { String::new() } else { format!(", {}", labels.join(" ")) }
}
