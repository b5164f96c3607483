//! Chains of tasks that sleep, of which it is written down which step ended when and on which node; and what must have
//! run again when nodes died.

use crate::chaos::work::task::note;
use mobula::{Blob, Client, ObjectRef};
use mobula_chaos::mix::mix;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of a value: too many to travel inside messages and records.
const BYTES: usize = 120_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    chain: u64,
    number: u64,
    ms: u64,
    log: String,
}

type Made = (u64, Blob);

#[mobula::remote]
fn begin(step: Step) -> Made {
    let hash = made(&step, 0);
    (hash, vec![hash as u8; BYTES].into())
}

#[mobula::remote]
fn go_on(step: Step, before: Made) -> Made {
    let hash = made(&step, checked(&before));
    (hash, vec![hash as u8; BYTES].into())
}

/// The last step: its value is small, and lives where it was asked for.
#[mobula::remote]
fn finish(step: Step, before: Made) -> u64 {
    made(&step, checked(&before))
}

/// The hash, or another one if the bytes are not what they were.
fn checked((hash, bytes): &Made) -> u64 {
    if bytes.len() == BYTES && bytes.iter().all(|byte| *byte == *hash as u8) { *hash } else { !hash }
}

fn made(step: &Step, before: u64) -> u64 {
    // The worker is its node's child for as long as that lives.
    let life = std::os::unix::process::parent_id();
    std::thread::sleep(Duration::from_millis(step.ms));
    let hash = mix(before, step.chain << 32 | step.number);
    note(&step.log, format_args!("{} {} {} {life}", step.chain, step.number, now_us()));
    hash
}

/// Microseconds since 1970: the same clock in all processes of this machine.
pub fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Submits a chain of `depth` steps of `ms` each: its last value, and what that must be.
pub fn submit(client: &Client, log: &Path, chain: u64, (depth, ms): (u64, u64)) -> (ObjectRef<u64>, u64) {
    let text = log.to_string_lossy().into_owned();
    let step = |number: u64| Step { chain, number, ms, log: text.clone() };
    let hash = (0..depth).fold(0, |hash, number| mix(hash, chain << 32 | number));
    let mut last = client.submit(begin::task(step(0)));
    for number in 1..depth - 1 {
        last = client.submit(go_on::task(step(number), &last));
    }
    (client.submit(finish::task(step(depth - 1), &last)), hash)
}

/// A step that ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Of which chain.
    pub chain: u64,
    /// Which of its steps.
    pub step: u64,
    /// When, in microseconds since 1970.
    pub at_us: u64,
    /// The process of the node.
    pub life: u32,
    /// It had ended before.
    pub again: bool,
}

/// All steps that ended, in order of time.
///
/// # Errors
/// What workers wrote cannot be read.
pub fn read(log: &Path) -> Result<Vec<Ended>, String> {
    let failed = |e: std::io::Error| format!("cannot read what workers wrote to {}: {e}", log.display());
    let mut ended = Vec::new();
    for entry in std::fs::read_dir(log).map_err(failed)? {
        let text = std::fs::read_to_string(entry.map_err(failed)?.path()).map_err(failed)?;
        for line in text.lines() {
            ended.push(parsed(line).ok_or_else(|| format!("a worker wrote {line:?}"))?);
        }
    }
    ended.sort_by_key(|ended: &Ended| ended.at_us);
    let mut known = std::collections::BTreeSet::new();
    for ended in &mut ended {
        ended.again = !known.insert((ended.chain, ended.step));
    }
    Ok(ended)
}

fn parsed(line: &str) -> Option<Ended> {
    let mut words = line.split(' ').map(str::parse::<u64>);
    let mut next = || words.next()?.ok();
    let (chain, step, at_us, life) = (next()?, next()?, next()?, next()?);
    Some(Ended { chain, step, at_us, life: u32::try_from(life).ok()?, again: false })
}

/// How many ran again that need not have. `deaths`: nodes by their processes, and when they died. A death of a node
/// on which a chain has been may cost that chain each step that it had ended before, and no other.
pub fn excess(ended: &[Ended], deaths: &[(u32, u64)]) -> u64 {
    let mut chains: BTreeMap<u64, Vec<Ended>> = BTreeMap::new();
    ended.iter().for_each(|ended| chains.entry(ended.chain).or_default().push(*ended));
    chains
        .values()
        .map(|steps| {
            let again = steps.iter().filter(|step| step.again).count() as u64;
            let cost = |(life, at_us): &(u32, u64)| {
                let before = || steps.iter().filter(|step| step.at_us <= *at_us);
                let was_there = before().any(|step| step.life == *life);
                // A step that ends as its node dies may be written down a moment later.
                let torn = steps.iter().any(|step| step.life == *life && step.at_us > *at_us);
                if was_there || torn { before().map(|step| step.step + 1).max().unwrap_or(0) + 1 } else { 0 }
            };
            again.saturating_sub(deaths.iter().map(cost).sum())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(all: &[(u64, u64, u64, u32)]) -> Vec<Ended> {
        let mut known = std::collections::BTreeSet::new();
        all.iter()
            .map(|(chain, step, at_us, life)| Ended {
                chain: *chain,
                step: *step,
                at_us: *at_us,
                life: *life,
                again: !known.insert((*chain, *step)),
            })
            .collect()
    }

    #[test]
    fn only_chains_that_were_on_a_dead_node_may_run_again() {
        let torn = ended(&[(1, 0, 10, 7), (1, 1, 20, 7), (1, 0, 40, 8), (1, 1, 50, 8), (1, 2, 60, 8)]);
        assert_eq!(excess(&torn, &[(7, 30)]), 0, "it was there");
        assert_eq!(excess(&torn, &[(9, 30)]), 2, "it was elsewhere");
        assert_eq!(excess(&torn, &[]), 2, "nothing died");
        let twice = ended(&[(1, 0, 10, 7), (1, 0, 40, 8), (1, 0, 50, 8), (1, 0, 60, 8)]);
        assert_eq!(excess(&twice, &[(7, 30)]), 1, "one death costs a step once, and the one under way");
    }

    #[test]
    fn lines_are_read_and_others_are_not() {
        let step = parsed("3 4 500 77").expect("a line");
        assert_eq!((step.chain, step.step, step.at_us, step.life), (3, 4, 500, 77));
        assert!(parsed("3 4 five 77").is_none() && parsed("3").is_none());
    }
}
