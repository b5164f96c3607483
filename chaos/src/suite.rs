//! Many scenarios, one after the other, as a file; and those that come with the program.
//!
//! ```toml
//! schema = 1
//! name = "nightly"
//! budget = "1h"              # no run begins after this
//! seed = 1000                # of the first run; each further one has the next
//! rounds = true              # begin anew until the budget is used up
//! [[entry]]
//! scenario = "heads"         # one that is built in, or a file beside this one
//! workloads = ["programs", "writes"]
//! repeat = 2
//! ```

use crate::scenario::{SCHEMA, Scenario, Work, parse_time};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Runs of one entry at most.
const REPEAT_MAX: u32 = 10_000;

/// Scenarios that come with the program, by their names.
pub const SCENARIOS: [(&str, &str); 6] = [
    ("heads", include_str!("../scenarios/heads.toml")),
    ("nodes", include_str!("../scenarios/nodes.toml")),
    ("pauses", include_str!("../scenarios/pauses.toml")),
    ("network", include_str!("../scenarios/network.toml")),
    ("copies", include_str!("../scenarios/copies.toml")),
    ("swarm", include_str!("../scenarios/swarm.toml")),
];

/// Suites that come with the program, by their names.
pub const SUITES: [(&str, &str); 2] =
    [("smoke", include_str!("../suites/smoke.toml")), ("nightly", include_str!("../suites/nightly.toml"))];

/// A suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// The version of the format.
    pub schema: u32,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// No run begins after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// Of the first run; each further one has the next.
    pub seed: u64,
    /// Begin anew until the budget is used up.
    #[serde(default)]
    pub rounds: bool,
    /// What is run.
    #[serde(rename = "entry")]
    pub entries: Vec<Entry>,
}

/// A part of a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Which scenario.
    pub scenario: String,
    /// With each of these workloads; none: with its own.
    #[serde(default)]
    pub workloads: Vec<Work>,
    /// So many times.
    #[serde(default = "once")]
    pub repeat: u32,
}

fn once() -> u32 {
    1
}

impl Suite {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let suite: Suite = toml::from_str(text).map_err(|error| error.to_string())?;
        if suite.schema != SCHEMA {
            return Err(format!("schema {} is not known; this program reads {SCHEMA}", suite.schema));
        }
        if suite.entries.is_empty() {
            return Err("it has no [[entry]]".into());
        }
        if let Some(entry) = suite.entries.iter().find(|entry| !(1..=REPEAT_MAX).contains(&entry.repeat)) {
            return Err(format!(
                "entry {:?}: repeat = {}: from 1 to {REPEAT_MAX}",
                entry.scenario, entry.repeat
            ));
        }
        if let Some(text) = &suite.budget {
            parse_time(text).map_err(|why| format!("budget: {why}"))?;
        } else if suite.rounds {
            return Err("rounds without a budget would never end".into());
        }
        Ok(suite)
    }

    /// No run begins after this, if that is said.
    pub fn budget(&self) -> Option<Duration> {
        self.budget.as_deref().and_then(|text| parse_time(text).ok())
    }

    /// The runs of one round: which scenario, and with which workload if not with its own.
    pub fn round(&self) -> Vec<(&str, Option<Work>)> {
        let mut runs = Vec::new();
        for entry in &self.entries {
            let own: Vec<Option<Work>> = match entry.workloads.as_slice() {
                [] => vec![None],
                some => some.iter().copied().map(Some).collect(),
            };
            for _ in 0..entry.repeat {
                runs.extend(own.iter().map(|work| (entry.scenario.as_str(), *work)));
            }
        }
        runs
    }
}

/// The scenario of this name that comes with the program.
pub fn built_in(name: &str) -> Option<Scenario> {
    let (_, text) = SCENARIOS.iter().find(|(known, _)| *known == name)?;
    Some(Scenario::parse(text).expect("what is built in is right: a test reads it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Layer;

    #[test]
    fn what_is_built_in_can_be_read_and_run() {
        for (name, text) in SCENARIOS {
            let scenario = Scenario::parse(text).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!(scenario.suits(Layer::Real), Ok(()), "{name}");
            let ends = scenario.ends().expect("it says when it ends");
            assert!(scenario.moments(ends).len() >= 3, "{name} does little");
        }
        for (name, text) in SUITES {
            let suite = Suite::parse(text).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert!(suite.round().iter().all(|(scenario, _)| built_in(scenario).is_some()), "{name}");
        }
    }

    #[test]
    fn a_suite_that_makes_no_sense_is_refused_with_its_reason() {
        let (_, text) = SUITES[1];
        let refused = |from: &str, to: &str| {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            Suite::parse(&changed).expect_err("it is wrong")
        };
        assert!(refused("budget = \"1h\"", "").contains("never end"));
        assert!(refused("\"1h\"", "\"long\"").contains("long"));
        assert!(refused("\"writes\"", "\"reads\"").contains("reads"));
        assert!(refused("scenario = \"nodes\"", "scenario = \"nodes\"\nrepeat = 0").contains("repeat"));
        assert!(refused("schema = 1", "schema = 3").contains("schema 3"));
    }
}
