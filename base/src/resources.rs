//! Exact resource arithmetic: thousandths in integers, so that nothing drifts or leaks.

use std::collections::BTreeMap;
use std::fmt;

/// The resource of numbered devices: a task takes whole ones, or a part of one.
pub const GPU: &str = "gpu";
/// The resource of memory, in millions of bytes.
pub const MEMORY: &str = "memory_mb";

/// An amount of every resource, in thousandths (1000 = one CPU).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CPUs, in thousandths.
    pub cpu_milli: u64,
    /// Named resources, in thousandths; none of them is 0.
    pub named: BTreeMap<String, u64>,
}

/// An amount in thousandths, to the nearest; nothing below 0 and nothing that is no number.
pub fn milli(amount: f64) -> u64 {
    (amount.max(0.0) * 1000.0).round() as u64
}

impl Resources {
    /// Only CPUs.
    pub fn cpus_milli(cpu_milli: u64) -> Self {
        Resources { cpu_milli, named: BTreeMap::new() }
    }

    /// CPUs and named resources; what is named twice counts twice.
    pub fn new(cpu_milli: u64, named: impl IntoIterator<Item = (String, u64)>) -> Self {
        let mut all = Resources::cpus_milli(cpu_milli);
        for (name, milli) in named {
            if milli > 0 {
                let sum = all.named.entry(name).or_default();
                *sum = sum.saturating_add(milli);
            }
        }
        all
    }

    /// How much there is of a named resource, in thousandths.
    pub fn of(&self, name: &str) -> u64 {
        // Most have none, and this is asked for each task.
        if self.named.is_empty() { 0 } else { self.named.get(name).copied().unwrap_or(0) }
    }

    /// Whether `demand` can be taken out of this.
    pub fn fits(&self, demand: &Resources) -> bool {
        self.cpu_milli >= demand.cpu_milli
            && demand.named.iter().all(|(name, need)| self.named.get(name).copied().unwrap_or(0) >= *need)
    }

    /// How often `demand` can be taken out of this; `None` for no end.
    pub fn times(&self, demand: &Resources) -> Option<u64> {
        let cpus = self.cpu_milli.checked_div(demand.cpu_milli);
        let named = demand.named.iter().filter_map(|(name, need)| self.of(name).checked_div(*need));
        named.chain(cpus).min()
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

    #[test]
    fn thirds_and_tenths_add_up() {
        // 0.1 + 0.2 is not 0.3 in binary fractions.
        let tenth = Resources::new(milli(0.1), [("tape".to_owned(), milli(0.1))]);
        let mut have = Resources::new(milli(1.0), [("tape".to_owned(), milli(1.0))]);
        for _ in 0..10 {
            have.take(&tenth);
        }
        assert!(!have.fits(&tenth));
        assert_eq!((have.cpu_milli, have.of("tape")), (0, 0));
        assert_eq!((milli(0.0004), milli(0.0006), milli(-1.0), milli(f64::NAN)), (0, 1, 0, 0));
    }

    #[test]
    fn amounts_of_one_name_are_summed_and_nothing_is_left_out() {
        let twice = [("a".to_owned(), 1), ("a".to_owned(), 2), ("b".to_owned(), 0)];
        let demand = Resources::new(0, twice);
        assert_eq!(demand.named, [("a".to_owned(), 3)].into());
        let have = Resources::new(1000, [("a".to_owned(), 10)]);
        assert_eq!((have.times(&demand), have.times(&Resources::default())), (Some(3), None));
        assert_eq!(have.times(&Resources::cpus_milli(400)), Some(2));
    }
}
