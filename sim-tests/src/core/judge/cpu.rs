//! S21: *what runs on a node never needs more CPU than it has.* A task that goes on after it waited may run
//! without a lease (R16); such tasks are not counted.

use super::{Found, object};
use std::collections::BTreeMap;

/// Adds up what runs.
#[derive(Default)]
pub struct Cpu {
    pub(super) found: Found,
    used: BTreeMap<u64, u64>,
    most: BTreeMap<u64, u64>,
}

impl Cpu {
    /// A node has so many CPUs.
    pub fn has(&mut self, node: u64, cpus: u64) {
        self.most.insert(node, cpus * 1000);
    }

    /// A task begins.
    pub fn started(&mut self, node: u64, cpu_milli: u64) {
        let used = self.used.entry(node).or_default();
        *used += cpu_milli;
        let (used, most) = (*used, self.most.get(&node).copied().unwrap_or(0));
        if used > most {
            object(&mut self.found, || format!("{node} runs {used} thousandths of a CPU, it has {most}"));
        }
    }

    /// It ends, dies, or waits for the first time.
    pub fn stopped(&mut self, node: u64, cpu_milli: u64) {
        if let Some(used) = self.used.get_mut(&node) {
            *used = used.saturating_sub(cpu_milli);
        }
    }

    /// A node's life ends.
    pub fn life_ended(&mut self, node: u64) {
        self.used.remove(&node);
    }
}
