//! Exact resource arithmetic: thousandths in integers, so that nothing drifts or leaks.

use std::collections::BTreeMap;
use std::fmt;

/// An amount of every resource, in thousandths (1000 = one CPU).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPUs, in thousandths.
    pub cpu_milli: u64,
    /// Named resources, in thousandths.
    pub named: BTreeMap<String, u64>,
}

impl Resources {
    /// Only CPUs.
    pub fn cpus_milli(cpu_milli: u64) -> Self {
        Resources { cpu_milli, named: BTreeMap::new() }
    }

    /// Whether `demand` can be taken out of this.
    pub fn fits(&self, demand: &Resources) -> bool {
        self.cpu_milli >= demand.cpu_milli
            && demand.named.iter().all(|(name, need)| self.named.get(name).copied().unwrap_or(0) >= *need)
    }

    /// Takes `demand` out. Panics when it does not fit: callers ask [`Resources::fits`] first.
    pub fn take(&mut self, demand: &Resources) {
        assert!(self.fits(demand), "took {demand} from {self}");
        self.cpu_milli -= demand.cpu_milli;
        for (name, need) in &demand.named {
            if let Some(have) = self.named.get_mut(name) {
                *have -= need;
            }
        }
    }

    /// Puts `demand` back.
    pub fn give(&mut self, demand: &Resources) {
        self.cpu_milli += demand.cpu_milli;
        for (name, back) in &demand.named {
            *self.named.entry(name.clone()).or_default() += back;
        }
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu {}", self.cpu_milli as f64 / 1000.0)?;
        for (name, milli) in &self.named {
            write!(f, ", {name} {}", *milli as f64 / 1000.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let mut have = Resources { cpu_milli: 2000, named: [("tape".into(), 1000)].into() };
        let whole = have.clone();
        let need = Resources { cpu_milli: 333, named: [("tape".into(), 500)].into() };
        have.take(&need);
        have.take(&need);
        assert!(!have.fits(&need), "the tape is gone");
        have.give(&need);
        have.give(&need);
        assert_eq!(have, whole);
        assert!(!have.fits(&Resources { cpu_milli: 0, named: [("gpu".into(), 1)].into() }));
    }
}
