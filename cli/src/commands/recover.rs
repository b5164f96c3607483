//! `mobula head recover`: a cluster of which a majority of the disks is gone, in two steps that a
//! person reads between.

use crate::args::RecoverCommand;
use crate::commands::snapshot::new_cluster;
use crate::config::{Settings, check_address};
use crate::datadir::DataDir;
use crate::exit::{self, Failure, Outcome};
use crate::say;
use mobula_base::disk::RealDisk;
use mobula_gcs::backup::offline::{self, ShardLeft, Survivor};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What `plan` writes and `apply` reads.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// Data directory of the survivor.
    data_dir: PathBuf,
    head: u64,
    old_cluster: String,
    new_cluster: String,
    address: String,
    lost_heads: Vec<String>,
    shards: Vec<PlannedShard>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PlannedShard {
    shard: u32,
    last_term: u64,
    last_index: u64,
    /// Up to here it is certain.
    committed: u64,
    snapshot: u64,
}

/// Runs a step.
pub fn run(settings: &Settings, command: &RecoverCommand) -> Outcome {
    match command {
        RecoverCommand::Plan { dirs, listen, out } => plan(settings, dirs, listen.as_deref(), out),
        RecoverCommand::Apply { plan } => apply(settings, plan),
    }
}

fn disk(dir: &Path) -> Result<RealDisk, Failure> {
    let head = DataDir(dir.to_owned()).head();
    if !head.is_dir() {
        return Err(
            format!("{} is no data directory of a head: it has no `head` in it", dir.display()).into()
        );
    }
    Ok(RealDisk::new(&head).map_err(|e| format!("cannot use {}: {e}", head.display()))?)
}

fn plan(settings: &Settings, dirs: &[PathBuf], listen: Option<&str>, out: &Path) -> Outcome {
    let output = settings.output;
    let own = [settings.data_dir.clone()];
    let dirs = if dirs.is_empty() { &own[..] } else { dirs };
    let mut survivors: Vec<(PathBuf, Survivor)> = Vec::new();
    for dir in dirs {
        let dir = std::path::absolute(dir).map_err(|e| format!("cannot use {}: {e}", dir.display()))?;
        let survivor = offline::look(&disk(&dir)?)?;
        survivors.push((dir, survivor));
    }
    let cluster = survivors[0].1.identity.cluster;
    if let Some((dir, other)) = survivors.iter().find(|(_, s)| s.identity.cluster != cluster) {
        let (dir, theirs) = (dir.display(), other.identity.cluster);
        return Err(format!("{dir} is of cluster {theirs:016x}, the first of {cluster:016x}").into());
    }
    // The one whose logs reach furthest, over all shards together.
    let reach = |s: &Survivor| -> (u64, u64) {
        (s.shards.iter().map(|s| s.last.0).sum(), s.shards.iter().map(|s| s.last.1).sum())
    };
    let (dir, best) = survivors.iter().max_by_key(|(_, s)| reach(s)).expect("one at least");
    let address = listen.unwrap_or(&best.address).to_owned();
    check_address(&address).map_err(Failure::usage)?;
    let plan = Plan {
        data_dir: dir.clone(),
        head: best.identity.head,
        old_cluster: format!("{cluster:016x}"),
        new_cluster: format!("{:016x}", new_cluster()?),
        address,
        lost_heads: best.others.clone(),
        shards: best.shards.iter().map(PlannedShard::of).collect(),
    };
    say!(output, "head {} of cluster {} in {}", plan.head, plan.old_cluster, dir.display());
    for shard in &plan.shards {
        let ahead = survivors.iter().filter(|(other, s)| {
            let theirs = s.shards.iter().find(|s| s.shard == shard.shard).map(|s| s.last);
            other != dir && theirs > Some((shard.last_term, shard.last_index))
        });
        let ahead: Vec<String> = ahead.map(|(_, s)| format!("head {}", s.identity.head)).collect();
        let more = if ahead.is_empty() { String::new() } else { format!("; {} has more", ahead.join(", ")) };
        say!(
            output,
            "  shard {}: log up to {} (term {}), certain up to {}, snapshot at {}{more}",
            shard.shard,
            shard.last_index,
            shard.last_term,
            shard.committed,
            shard.snapshot
        );
    }
    say!(output, "what may be lost: whatever the others acknowledged above those entries");
    say!(output, "what may appear: entries above the certain ones, which may never have been acknowledged");
    say!(output, "the new cluster {} has one head, at {}", plan.new_cluster, plan.address);
    say!(output, "  the heads at {:?} belong to the old one and will be refused", plan.lost_heads);
    let text = serde_json::to_string_pretty(&plan).expect("plans have only text keys");
    fs::write(out, text).map_err(|e| format!("cannot write {}: {e}", out.display()))?;
    say!(output, "if that is what you want: `mobula head recover apply {}`", out.display());
    output.data(&plan);
    Ok(exit::OK)
}

impl PlannedShard {
    fn of(left: &ShardLeft) -> Self {
        let (last_term, last_index) = left.last;
        PlannedShard {
            shard: left.shard,
            last_term,
            last_index,
            committed: left.committed,
            snapshot: left.snapshot,
        }
    }

    fn left(&self) -> ShardLeft {
        ShardLeft {
            shard: self.shard,
            last: (self.last_term, self.last_index),
            committed: self.committed,
            snapshot: self.snapshot,
        }
    }
}

/// Makes the new head beside the old one, then exchanges them: at every moment one of them is whole.
fn apply(settings: &Settings, file: &Path) -> Outcome {
    let output = settings.output;
    let text = fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let plan: Plan = serde_json::from_str(&text)
        .map_err(|e| Failure::usage(format!("{} is no plan: {e}", file.display())))?;
    let cluster = u64::from_str_radix(&plan.new_cluster, 16).ok().filter(|id| *id != 0);
    let cluster = cluster.ok_or_else(|| Failure::usage("the plan's new cluster is no id"))?;
    let dir = DataDir(plan.data_dir.clone());
    if let Some(process) = dir.running() {
        return Err(format!("a daemon (pid {}) runs from it: stop it with `mobula stop`", process.pid).into());
    }
    let (fresh, kept) = (dir.0.join("head.recovered"), dir.0.join(format!("head.lost-{}", plan.old_cluster)));
    let done = |output: crate::output::Output| {
        say!(output, "recovered into {}; the old head is kept as {}", dir.0.display(), kept.display());
        let (shards, listen) = (plan.shards.len(), &plan.address);
        say!(
            output,
            "  next      `mobula start --head --shards {shards} --listen {listen} --data-dir {}`, then `mobula \
             head add` for the others, each with an empty data directory",
            dir.0.display()
        );
        output.data(&plan);
        Ok(exit::OK)
    };
    let moved = |e: std::io::Error| format!("cannot put the new head in its place: {e}");
    if kept.exists() && !dir.head().exists() && fresh.exists() {
        // Interrupted between the two names.
        fs::rename(&fresh, dir.head()).map_err(moved)?;
        return done(output);
    }
    if kept.exists() {
        return Err(format!("{} is there already: this plan was applied before", kept.display()).into());
    }
    if fresh.exists() {
        // Half-made by an earlier try; nothing else is ever in it.
        fs::remove_dir_all(&fresh).map_err(|e| format!("cannot remove {}: {e}", fresh.display()))?;
    }
    let planned: Vec<ShardLeft> = plan.shards.iter().map(PlannedShard::left).collect();
    let to = RealDisk::new(&fresh).map_err(|e| format!("cannot use {}: {e}", fresh.display()))?;
    offline::recover(&disk(&dir.0)?, Arc::new(to), &planned, cluster, &plan.address)?;
    let sync = || fs::File::open(&dir.0).and_then(|dir| dir.sync_all());
    fs::rename(dir.head(), &kept).and_then(|()| sync()).map_err(moved)?;
    fs::rename(&fresh, dir.head()).and_then(|()| sync()).map_err(moved)?;
    done(output)
}
