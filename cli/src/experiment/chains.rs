//! Chains of tasks whose values lie in nodes' memory, so that they go with them; each execution is written down.

use crate::chaos::judge::runs;
use crate::chaos::work::task::note;
use mobula::{Affinity, Blob, Client, Error, ObjectRef};
use mobula_chaos::mix::mix;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a value: too many to travel inside messages and records.
const BYTES: usize = 120_000;

/// What a link of a chain is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Link {
    number: u64,
    ms: u64,
    log: String,
}

/// What it makes.
type Made = (u64, Blob);

#[mobula::remote]
fn first(link: Link) -> Made {
    made(link, 0)
}

#[mobula::remote]
fn next(link: Link, before: Made) -> Made {
    made(link, before.0)
}

#[mobula::remote]
fn gather(link: Link, all: mobula::Many<Made>) -> Made {
    let before = all.0.iter().fold(0, |sum, (hash, _)| mix(sum, *hash));
    made(link, before)
}

fn made(link: Link, before: u64) -> Made {
    let client = mobula::current();
    note(&link.log, format_args!("run {} {} {}", client.task(), client.attempt(), client.node()));
    // It holds its CPU of the cluster, and leaves that of the machine to others.
    std::thread::sleep(Duration::from_millis(link.ms));
    let hash = mix(before, link.number);
    (hash, vec![hash as u8; BYTES].into())
}

/// Chains that were submitted together.
pub struct Chains {
    log: PathBuf,
    /// The last value of each, and what it must be. Whatever was before is let go of.
    pub ends: Vec<(ObjectRef<Made>, u64)>,
}

/// What the chains of one measurement are like.
#[derive(Clone, Copy, Debug)]
pub struct Like {
    /// How many links.
    pub depth: u64,
    /// How long each computes, in milliseconds.
    pub ms: u64,
}

impl Chains {
    /// Makes chains on nodes: `on` says how many on each, of which no more than `cpus` are made at once, so that each finds
    /// room where it shall be. Waits until all are there.
    ///
    /// # Errors
    /// There is no room for what executions are written to, or they do not end within `patience`.
    pub fn make(
        client: &Client,
        log: &Path,
        on: &[(String, u64)],
        like: Like,
        (cpus, patience): (u64, Duration),
    ) -> Result<Self, String> {
        std::fs::create_dir_all(log).map_err(|e| format!("cannot make {}: {e}", log.display()))?;
        let mut chains = Chains { log: log.to_owned(), ends: Vec::new() };
        let most = on.iter().map(|(_, many)| *many).max().unwrap_or(0);
        let mut number = 0;
        for wave in 0..most.div_ceil(cpus) {
            let left = |many: u64| many.saturating_sub(wave * cpus).min(cpus);
            for (node, many) in on {
                let numbers = number..number + left(*many);
                number = numbers.end;
                numbers.for_each(|number| chains.submit(client, number, node, like));
            }
            chains.wait(client, patience)?;
        }
        Ok(chains)
    }

    fn submit(&mut self, client: &Client, chain: u64, node: &str, like: Like) {
        let text = self.log.to_string_lossy().into_owned();
        let link = |step: u64| Link { number: chain << 32 | step, ms: like.ms, log: text.clone() };
        let mut last = client.submit(first::task(link(0)).node_affinity(node, Affinity::Soft));
        let mut hash = mix(0, link(0).number);
        for step in 1..like.depth {
            let task = next::task(link(step), &last).node_affinity(node, Affinity::Soft);
            last = client.submit(task);
            hash = mix(hash, link(step).number);
        }
        self.ends.push((last, hash));
    }

    /// One more task that takes the last values of all.
    #[must_use]
    pub fn gathered(mut self, client: &Client, ms: u64) -> Self {
        let link = Link { number: u64::MAX, ms, log: self.log.to_string_lossy().into_owned() };
        let refs: Vec<ObjectRef<Made>> = self.ends.iter().map(|(end, _)| end.clone()).collect();
        let before = self.ends.iter().fold(0, |sum, (_, hash)| mix(sum, *hash));
        let hash = mix(before, link.number);
        self.ends = vec![(client.submit(gather::task(link, refs)), hash)];
        self
    }

    /// Waits until all exist, without bringing them here.
    ///
    /// # Errors
    /// They do not come within `patience`.
    pub fn wait(&self, client: &Client, patience: Duration) -> Result<(), String> {
        let refs: Vec<ObjectRef<Made>> = self.ends.iter().map(|(end, _)| end.clone()).collect();
        let missing = client.wait(&refs, refs.len(), patience).iter().filter(|ready| !**ready).count();
        if missing > 0 {
            Err(format!("{missing} of {} values do not come within {patience:?}", refs.len()))
        } else {
            Ok(())
        }
    }

    /// Gets all at once: what is gone is made again only when somebody asks for it. How many are wrong, and the first that
    /// failed.
    pub fn get(&self) -> (u64, Option<Error>) {
        let (mut wrong, mut failed) = (0, None);
        let all = self.ends.iter().map(|(end, _)| end.get_async());
        let got = futures::executor::block_on(futures::future::join_all(all));
        for (got, (_, hash)) in got.into_iter().zip(&self.ends) {
            match got {
                Ok((found, bytes)) => {
                    wrong += u64::from(found != *hash || bytes.iter().any(|byte| *byte != *hash as u8))
                }
                Err(error) => _ = failed.get_or_insert(error),
            }
        }
        (wrong, failed)
    }

    /// Executions so far, and how many were not the first of their task.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn executions(&self) -> Result<(u64, u64), String> {
        let found = runs::read(&self.log)?;
        Ok((found.executions, found.again))
    }
}
