//! How far the job is: a percentage that is known in advance to be reached and never falls.

/// Done and all tasks of each stage; `verify` is unknown until `band` is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Blocks read.
    pub read: (usize, usize),
    /// Blocks signed.
    pub shingle: (usize, usize),
    /// Groups of bands.
    pub band: (usize, usize),
    /// Groups of comparisons.
    pub verify: Option<(usize, usize)>,
}

/// One stage as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// Its share of the whole, in percent.
    pub percent: u32,
    /// Tasks done.
    pub done: usize,
    /// All tasks; `None` while unknown.
    pub total: Option<usize>,
}

impl Progress {
    /// The stages in order. Their shares are fixed, as the number of tasks of the last stage is
    /// not known before the others are over.
    pub fn stages(&self) -> [Stage; 4] {
        let stage = |name, percent, counts: Option<(usize, usize)>| Stage {
            name,
            percent,
            done: counts.map_or(0, |c| c.0),
            total: counts.map(|c| c.1),
        };
        [
            stage("read", 25, Some(self.read)),
            stage("shingle", 30, Some(self.shingle)),
            stage("band", 20, Some(self.band)),
            stage("verify", 25, self.verify),
        ]
    }

    /// Percent done, rounded down.
    pub fn percent(&self) -> u32 {
        // In thousandths of a percent, so that rounding loses nothing that shows.
        let thousandths: usize = self
            .stages()
            .iter()
            .map(|s| match s.total {
                None => 0,
                Some(0) => s.percent as usize * 1000,
                Some(total) => s.percent as usize * 1000 * s.done / total,
            })
            .sum();
        (thousandths / 1000) as u32
    }

    /// Tasks done, and tasks known.
    pub fn tasks(&self) -> (usize, usize) {
        let stages = self.stages();
        (stages.iter().map(|s| s.done).sum(), stages.iter().filter_map(|s| s.total).sum())
    }

    /// Whether every task is done.
    pub fn is_over(&self) -> bool {
        self.stages().iter().all(|s| s.total == Some(s.done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentage_runs_from_0_to_100() {
        let at = |read, shingle, band, verify| Progress {
            read: (read, 10),
            shingle: (shingle, 10),
            band: (band, 4),
            verify,
        };
        assert_eq!(at(0, 0, 0, None).percent(), 0);
        assert_eq!(at(10, 5, 0, None).percent(), 40);
        assert_eq!(at(10, 10, 1, None).percent(), 60);
        assert_eq!(at(10, 10, 4, None).percent(), 75);
        assert_eq!(at(10, 10, 4, Some((0, 7))).percent(), 75);
        assert_eq!(at(10, 10, 4, Some((7, 7))).percent(), 100);
        assert!(!at(10, 10, 4, None).is_over());
        assert!(at(10, 10, 4, Some((7, 7))).is_over());
        assert_eq!(at(10, 10, 4, Some((0, 0))).percent(), 100, "nothing to compare is done at once");
        assert_eq!(at(10, 10, 1, None).tasks(), (21, 24));
    }
}
