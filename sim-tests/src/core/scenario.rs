//! A run as a file: which cluster and program a seed draws, and which faults come when. What a sweep finds
//! becomes one (`repro`), `shrink` makes it small, and people write their own.
//!
//! ```toml
//! schema = 1
//! name = "all copies and their leader"
//! layers = ["core"]
//! seed = 42                  # draws what is not said here
//! ends = "66s"               # no more faults and tasks after this
//! [cluster]
//! nodes = 5
//! shards = 4
//! [workload]
//! without = [3, 4]           # steps of the driver that are left out, with all that takes their values
//! [[fault]]
//! at = "12.5s"
//! do = "crash"
//! machine = 2                # else drawn, by `draw`
//! draw = 17
//! ```
//!
//! Unknown keys are errors; every time has a unit.

use super::faults::Kind;
use super::options::{Options, Profile};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// The only version of the format so far.
pub const SCHEMA: u32 = 1;
/// A run lasts no longer than this.
const ENDS_MAX: Duration = Duration::from_secs(3600);
/// Machines, shards and faults at most.
const MACHINES_MAX: usize = 1000;
const SHARDS_MAX: usize = 64;
const FAULTS_MAX: usize = 100_000;

/// A scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// [`SCHEMA`].
    pub schema: u32,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Where it can run.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Draws whatever is not said.
    pub seed: u64,
    /// No more faults and no more tasks after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<String>,
    /// The cluster.
    #[serde(default)]
    pub cluster: Cluster,
    /// The program.
    #[serde(default)]
    pub workload: Workload,
    /// What goes wrong.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Planned>,
}

/// The cluster; what is not said is drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Machines with a node; the first is the driver's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<usize>,
    /// Shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<usize>,
}

/// The program.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Steps of the driver that are left out, by number, with all that takes what they make.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<usize>,
}

/// A fault at a moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// When, from the beginning.
    pub at: String,
    /// Which.
    #[serde(rename = "do")]
    pub kind: Kind,
    /// Draws whatever is not said.
    #[serde(default)]
    pub draw: u64,
    /// The machine, for faults that strike one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<usize>,
    /// The shard, for faults that strike one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<usize>,
    /// How long it lasts, for faults that do.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<String>,
}

impl Scenario {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let scenario: Scenario = toml::from_str(text).map_err(|error| error.to_string())?;
        scenario.check()?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema {} is not known; this program reads {SCHEMA}", self.schema));
        }
        if let Some(layer) = self.layers.iter().find(|layer| *layer != "core") {
            return Err(format!("layer {layer:?}: this program runs scenarios in the layer \"core\" only"));
        }
        let nodes = self.cluster.nodes.unwrap_or(3);
        if !(2..=MACHINES_MAX).contains(&nodes) {
            return Err(format!("{nodes} nodes: at least 2, at most {MACHINES_MAX}"));
        }
        let shards = self.cluster.shards.unwrap_or(1);
        if !(1..=SHARDS_MAX).contains(&shards) {
            return Err(format!("{shards} shards: at least 1, at most {SHARDS_MAX}"));
        }
        if self.faults.len() > FAULTS_MAX {
            return Err(format!("{} faults: at most {FAULTS_MAX}", self.faults.len()));
        }
        self.ends()?;
        self.faults.iter().try_for_each(|fault| fault.check(self))
    }

    fn ends(&self) -> Result<Option<Duration>, String> {
        let Some(text) = &self.ends else { return Ok(None) };
        let ends = parse_time(text)?;
        if ends > ENDS_MAX || ends < Duration::from_secs(1) {
            return Err(format!("ends = {text:?}: from 1s to {}s", ENDS_MAX.as_secs()));
        }
        Ok(Some(ends))
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("it has nothing that TOML does not")
    }

    /// The seed's own run, with the faults that landed in it.
    pub fn of(seed: u64, options: &Options, faults: Vec<Planned>) -> Self {
        Scenario {
            schema: SCHEMA,
            name: format!("seed {seed}"),
            layers: vec!["core".to_owned()],
            seed,
            ends: Some(time_text(options.faults_end)),
            cluster: Cluster { nodes: Some(options.nodes), shards: Some(options.shards) },
            workload: Workload::default(),
            faults,
        }
    }

    /// What a run of it is drawn as.
    pub fn options(&self) -> Options {
        let mut options = Options::draw(self.seed, Some(Profile::Swarm));
        if let Some(nodes) = self.cluster.nodes {
            let cpus = options.cpus.clone();
            options.cpus = (0..nodes).map(|node| cpus[node % cpus.len()]).collect();
            options.nodes = nodes;
        }
        options.shards = self.cluster.shards.unwrap_or(options.shards);
        options.faults_end = self.ends().ok().flatten().unwrap_or(options.faults_end);
        options.without = self.workload.without.clone();
        options.plan = Some(self.faults.clone());
        options
    }
}

impl Planned {
    /// One that says as little as possible.
    pub fn of(at: Duration, kind: Kind, draw: u64) -> Self {
        Planned { at: time_text(at), kind, draw, machine: None, shard: None, lasts: None }
    }

    fn check(&self, scenario: &Scenario) -> Result<(), String> {
        let what = format!("fault {:?} at {:?}", self.kind, self.at);
        let wrong = |text: String| Err(format!("{what}: {text}"));
        if let Err(why) = parse_time(&self.at) {
            return wrong(why);
        }
        if let Some(Err(why)) = self.lasts.as_deref().map(parse_time) {
            return wrong(why);
        }
        match (self.machine, scenario.cluster.nodes) {
            (Some(_), None) => {
                wrong("it names a machine, but [cluster] does not say how many nodes there are".into())
            }
            (Some(machine), Some(nodes)) if machine >= nodes => {
                wrong(format!("there is no machine {machine}"))
            }
            _ => match (self.shard, scenario.cluster.shards) {
                (Some(_), None) => {
                    wrong("it names a shard, but [cluster] does not say how many shards there are".into())
                }
                (Some(shard), Some(shards)) if shard >= shards => wrong(format!("there is no shard {shard}")),
                _ => Ok(()),
            },
        }
    }

    /// When it comes.
    pub fn at(&self) -> Duration {
        parse_time(&self.at).unwrap_or_default()
    }

    /// How long it lasts, if that is said.
    pub fn lasts(&self) -> Option<Duration> {
        self.lasts.as_deref().and_then(|text| parse_time(text).ok())
    }
}

/// Reads `1500ms`, `12.5s`, `2m`, or microseconds, `70us`.
///
/// # Errors
/// It is no time.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "ns" => 1e-9,
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("{text:?} is no time; write 1500ms, 12.5s or 2m")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("{text:?} is no time; write 1500ms, 12.5s or 2m"))?;
    let nanos = (number * seconds * 1e9).round();
    if !(0.0..1e16).contains(&nanos) {
        return Err(format!("{text:?} is out of range"));
    }
    Ok(Duration::from_nanos(nanos as u64))
}

/// The inverse of [`parse_time`], exactly.
pub fn time_text(time: Duration) -> String {
    match time.as_nanos() {
        nanos if nanos.is_multiple_of(1_000_000_000) => format!("{}s", time.as_secs()),
        nanos if nanos.is_multiple_of(1_000_000) => format!("{}ms", time.as_millis()),
        nanos => format!("{nanos}ns"),
    }
}

/// A file that may be anything: what is understood can be drawn a run of, and comes back from its text. The
/// fuzz target `scenario` and a test here call this.
pub fn hostile(bytes: &[u8]) {
    let Ok(scenario) = Scenario::parse(&String::from_utf8_lossy(bytes)) else { return };
    let again = Scenario::parse(&scenario.to_text()).expect("it was written here");
    assert_eq!(again, scenario);
    assert_eq!(scenario.options().nodes, scenario.options().cpus.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scenario() -> Scenario {
        let options = Options::draw(3, None);
        let fault = Planned {
            at: time_text(Duration::from_nanos(1_234_567_891)),
            kind: Kind::CutNodes,
            draw: 9,
            machine: None,
            shard: Some(0),
            lasts: Some("2s".into()),
        };
        Scenario::of(3, &options, vec![fault])
    }

    #[test]
    fn a_scenario_comes_back_from_its_text() {
        let before = scenario();
        let after = Scenario::parse(&before.to_text()).expect("it was written here");
        assert_eq!(after, before);
        assert_eq!(after.faults[0].at(), Duration::from_nanos(1_234_567_891));
    }

    #[test]
    fn what_is_not_known_or_not_possible_is_refused_with_its_reason() {
        let text = scenario().to_text();
        let refused = |text: String| Scenario::parse(&text).expect_err("it is wrong");
        assert!(refused(text.replace("seed =", "seeds =")).contains("seeds"));
        assert!(refused(text.replace("schema = 1", "schema = 2")).contains("schema 2"));
        assert!(refused(text.replace("\"cut-nodes\"", "\"cut-knots\"")).contains("cut-knots"));
        assert!(refused(text.replace("\"2s\"", "\"2 parsecs\"")).contains("2 parsecs"));
        assert!(refused(text.replace("shard = 0", "shard = 64")).contains("no shard 64"));
        assert!(refused(text.replace("\"core\"", "\"full\"")).contains("full"));
    }

    proptest! {
        #[test]
        fn a_scenario_with_changed_bytes_is_understood_or_refused(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = scenario().to_text().into_bytes();
            for (at, to) in changes {
                let at = at.index(bytes.len());
                bytes[at] = to;
            }
            hostile(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            hostile(&bytes);
        }
    }
}
