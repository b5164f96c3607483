//! A run as a file: a cluster, a workload, and which faults come when. What a sweep finds becomes one (`repro`), `shrink`
//! makes it small, and people write their own. The same file runs in the simulator and on real processes.
//!
//! ```toml
//! schema = 1
//! name = "leaders die one after the other, and a node"
//! layers = ["core", "real"]
//! seed = 42                  # draws what is not said here
//! ends = "66s"               # no more faults and tasks after this
//! [cluster]
//! nodes = 5                  # the first is the driver's
//! shards = 4
//! [workload]
//! kind = "programs"
//! without = [3, 4]           # steps of the driver that are left out, with all that takes their values
//! [[fault]]
//! at = "2s"
//! every = "5s"               # again and again, until the end
//! do = "head-crash"
//! target = "leader"
//! [[fault]]
//! at = "12.5s"
//! do = "crash"
//! machine = 2                # else drawn, by `draw`
//! draw = 17
//! ```
//!
//! Unknown keys are errors; every time has a unit.

use crate::dice::Dice;
pub use crate::kind::{Kind, Layer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// The only version of the format so far.
pub const SCHEMA: u32 = 1;
/// A run lasts no longer than this.
const ENDS_MAX: Duration = Duration::from_secs(3600);
/// No fault comes again sooner than this.
const EVERY_MIN: Duration = Duration::from_millis(20);
/// Machines, heads, shards and faults at most.
const MACHINES_MAX: usize = 1000;
const HEADS_MAX: usize = 9;
const SHARDS_MAX: usize = 64;
const FAULTS_MAX: usize = 100_000;
/// CPUs of a node at most.
const CPUS_MAX: u32 = 1024;

/// A scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// [`SCHEMA`].
    pub schema: u32,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Where it can run; empty: wherever its faults can be had.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// Draws whatever is not said.
    pub seed: u64,
    /// No more faults and no more tasks after this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<String>,
    /// The cluster.
    #[serde(default)]
    pub cluster: Cluster,
    /// What runs on it.
    #[serde(default)]
    pub workload: Workload,
    /// What goes wrong.
    #[serde(default, rename = "fault", skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Planned>,
    /// What must come of it, beyond what must hold in any run.
    #[serde(default, skip_serializing_if = "Expect::is_empty")]
    pub expect: Expect,
}

/// The cluster; what is not said is drawn, or what is usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Machines with a node; the first is the driver's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<usize>,
    /// Shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<usize>,
    /// CPUs of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
}

/// What runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Random programs whose answers an interpreter knows.
    #[default]
    Programs,
    /// The same, with mostly large values.
    Objects,
    /// Short tasks, always so many in flight.
    Tasks,
    /// Writes to the control store, one in flight for each shard.
    Writes,
}

impl std::fmt::Display for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its name in files, from the one place where that is said.
        self.serialize(f)
    }
}

impl std::str::FromStr for Work {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Work::Programs, Work::Objects, Work::Tasks, Work::Writes];
        let found = all.into_iter().find(|work| work.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is no workload; there are programs, objects, tasks and writes"))
    }
}

/// The workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// What runs.
    #[serde(default)]
    pub kind: Work,
    /// Steps of the driver that are left out, by number, with all that takes what they make.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<usize>,
}

/// Whom a fault strikes, found when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The head that leads a shard: that of `shard`, or one that is drawn.
    Leader,
    /// A head that does not lead that shard.
    Follower,
    /// The node, but for the driver's, that has most bytes of objects.
    Holder,
}

/// A fault at a moment, or at many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Planned {
    /// When, from the beginning.
    pub at: String,
    /// Again so long after each time, until the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<String>,
    /// Each time up to so much later, drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<String>,
    /// No more often than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Each time only so likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Which.
    #[serde(rename = "do")]
    pub kind: Kind,
    /// Draws whatever is not said.
    #[serde(default)]
    pub draw: u64,
    /// Whom, by what they are then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Role>,
    /// The machine, for faults that strike one: heads are counted from 0, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<usize>,
    /// The shard, for faults that strike one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<usize>,
    /// How long it lasts, for faults that do.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<String>,
}

/// What must come of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// The longest time without an answer, while something waits for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stall: Option<String>,
    /// So many faults may find no target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<usize>,
}

impl Expect {
    fn is_empty(&self) -> bool {
        *self == Expect::default()
    }

    /// The longest time without an answer.
    pub fn stall(&self) -> Option<Duration> {
        self.stall.as_deref().and_then(|text| parse_time(text).ok())
    }
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
        let within = |what: &str, value: Option<usize>, low: usize, high: usize| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Err(format!("{value} {what}: at least {low}, at most {high}"))
            }
            _ => Ok(()),
        };
        let cluster = &self.cluster;
        within("nodes", cluster.nodes, 2, MACHINES_MAX)?;
        within("shards", cluster.shards, 1, SHARDS_MAX)?;
        within("heads", cluster.heads, 1, HEADS_MAX)?;
        within("CPUs of a node", cluster.cpus.map(|cpus| cpus as usize), 1, CPUS_MAX as usize)?;
        if cluster.heads.is_some_and(|heads| heads.is_multiple_of(2)) {
            return Err("an even number of heads survives no more than one head less".into());
        }
        within("faults", Some(self.faults.len()), 0, FAULTS_MAX)?;
        if let Some(text) = &self.expect.stall {
            parse_time(text).map_err(|why| format!("expect: stall: {why}"))?;
        }
        let ends = self.ends_or_why()?.unwrap_or(ENDS_MAX);
        self.faults.iter().try_for_each(|fault| fault.check(self))?;
        let many = self.faults.iter().map(|fault| fault.times_until(ends)).sum();
        within("faults, each counted as often as it comes", Some(many), 0, FAULTS_MAX)?;
        self.layers.iter().try_for_each(|layer| self.suits(*layer))
    }

    /// Whether it can run there.
    ///
    /// # Errors
    /// Why not.
    pub fn suits(&self, layer: Layer) -> Result<(), String> {
        if !self.layers.is_empty() && !self.layers.contains(&layer) {
            return Err(format!("it is not meant for the layer {layer}: it has layers = {:?}", self.names()));
        }
        if let Some(fault) = self.faults.iter().find(|fault| !fault.kind.is_of(layer)) {
            return Err(format!("the layer {layer} has no fault \"{}\"", fault.kind));
        }
        if layer == Layer::Core && matches!(self.workload.kind, Work::Tasks | Work::Writes) {
            return Err("the layer core runs the workloads programs and objects only".into());
        }
        match (layer, self.faults.iter().find_map(|fault| fault.target)) {
            (Layer::Core, Some(_)) => Err("the layer core finds no targets by their roles".into()),
            _ => Ok(()),
        }
    }

    fn names(&self) -> Vec<String> {
        self.layers.iter().map(Layer::to_string).collect()
    }

    fn ends_or_why(&self) -> Result<Option<Duration>, String> {
        let Some(text) = &self.ends else { return Ok(None) };
        let ends = parse_time(text)?;
        if ends > ENDS_MAX || ends < Duration::from_secs(1) {
            return Err(format!("ends = {text:?}: from 1s to {}s", ENDS_MAX.as_secs()));
        }
        Ok(Some(ends))
    }

    /// No more faults and no more tasks after this, if that is said.
    pub fn ends(&self) -> Option<Duration> {
        self.ends_or_why().ok().flatten()
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("it has nothing that TOML does not")
    }

    /// Every fault by itself at its moment, in the order of time, until `ends`: what comes again and again, late by
    /// chance, or perhaps, is drawn by the seed.
    pub fn moments(&self, ends: Duration) -> Vec<Planned> {
        let each = self.faults.iter().enumerate();
        let mut all: Vec<Planned> =
            each.flat_map(|(number, fault)| fault.moments(self.seed, number, ends)).collect();
        all.sort_by_key(Planned::at);
        all
    }
}

impl Planned {
    /// One that says as little as possible.
    pub fn of(at: Duration, kind: Kind, draw: u64) -> Self {
        Planned {
            at: time_text(at),
            every: None,
            jitter: None,
            times: None,
            probability: None,
            kind,
            draw,
            target: None,
            machine: None,
            shard: None,
            lasts: None,
        }
    }

    fn check(&self, scenario: &Scenario) -> Result<(), String> {
        let wrong = |text: String| Err(format!("fault \"{}\" at {:?}: {text}", self.kind, self.at));
        let times = [Some(&self.at), self.every.as_ref(), self.jitter.as_ref(), self.lasts.as_ref()];
        for text in times.into_iter().flatten() {
            if let Err(why) = parse_time(text) {
                return wrong(why);
            }
        }
        if self.every.is_some() && time(&self.every) < EVERY_MIN {
            return wrong(format!("every {}: at least {EVERY_MIN:?}", time_text(time(&self.every))));
        }
        if self.every.is_some() && time(&self.jitter) >= time(&self.every) {
            return wrong("its jitter is not below the time after which it comes again".into());
        }
        if self.times.is_some() && self.every.is_none() {
            return wrong("it has `times` and no `every`".into());
        }
        if self.probability.is_some_and(|of| !(0.0..=1.0).contains(&of)) {
            return wrong("its probability is not from 0 to 1".into());
        }
        if self.target.is_some() && self.machine.is_some() {
            return wrong("it names a machine and a role: one of them is enough".into());
        }
        let (machines, what) = match self.kind.is_of_heads() {
            true => (scenario.cluster.heads, "heads"),
            false => (scenario.cluster.nodes, "nodes"),
        };
        // Those of a file that a seed was written down as need not say how many heads there are.
        let machines = if self.kind.is_of_heads() { machines.or(Some(3)) } else { machines };
        for (named, there, one, many) in [
            (self.machine, machines, "machine", what),
            (self.shard, scenario.cluster.shards, "shard", "shards"),
        ] {
            match (named, there) {
                (Some(_), None) => {
                    return wrong(format!(
                        "it names a {one}, but [cluster] does not say how many {many} there are"
                    ));
                }
                (Some(named), Some(there)) if named >= there => {
                    return wrong(format!("there is no {one} {named}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How often it may come until then.
    fn times_until(&self, ends: Duration) -> usize {
        let Some(_) = &self.every else { return 1 };
        let room = ends.saturating_sub(self.at()).as_nanos() / time(&self.every).as_nanos().max(1);
        let room = usize::try_from(room + 1).unwrap_or(usize::MAX);
        self.times.map_or(room, |times| room.min(times as usize))
    }

    fn moments(&self, seed: u64, number: usize, ends: Duration) -> Vec<Planned> {
        if self.every.is_none() && self.jitter.is_none() && self.probability.is_none() {
            return vec![self.clone()];
        }
        let dice = &mut Dice::new(seed, &format!("moments of fault {number}"));
        let mut moments = Vec::new();
        for n in 0..self.times_until(ends) as u32 {
            let late = dice.us(0, time(&self.jitter).as_micros() as u64);
            let comes = dice.permille((self.probability.unwrap_or(1.0) * 1000.0) as u64);
            let at = self.at() + time(&self.every) * n + late;
            if comes && at <= ends {
                let (every, jitter, times, probability) = (None, None, None, None);
                // Each is another draw.
                let draw = self.draw + (u64::from(n) << 32);
                let at = time_text(at);
                moments.push(Planned { at, every, jitter, times, probability, draw, ..self.clone() });
            }
        }
        moments
    }

    /// When it comes first.
    pub fn at(&self) -> Duration {
        parse_time(&self.at).unwrap_or_default()
    }

    /// How long it lasts, if that is said.
    pub fn lasts(&self) -> Option<Duration> {
        self.lasts.as_deref().and_then(|text| parse_time(text).ok())
    }
}

/// A time that was looked at before; none is no time.
fn time(text: &Option<String>) -> Duration {
    text.as_deref().and_then(|text| parse_time(text).ok()).unwrap_or_default()
}

/// Reads `1500ms`, `12.5s`, `2m`, `1h`, or microseconds, `70us`.
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
        "h" => 3600.0,
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

/// A file that may be anything: what is understood comes back from its text, and so does what it asks for.
pub fn hostile(bytes: &[u8]) -> Option<Scenario> {
    let scenario = Scenario::parse(&String::from_utf8_lossy(bytes)).ok()?;
    let again = Scenario::parse(&scenario.to_text()).expect("it was written here");
    assert_eq!(again, scenario);
    let ends = scenario.ends().unwrap_or(ENDS_MAX);
    assert_eq!(scenario.moments(ends), again.moments(ends));
    Some(scenario)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &str = r#"
schema = 1
name = "an example"
layers = ["core"]
seed = 3
ends = "20s"
[cluster]
nodes = 5
shards = 4
[workload]
without = [3, 4]
[[fault]]
at = "1234567891ns"
do = "cut-nodes"
draw = 9
shard = 0
for = "2s"
"#;

    const AGAIN: &str = r#"
schema = 1
layers = ["real"]
seed = 3
ends = "20s"
[[fault]]
at = "2s"
every = "5s"
jitter = "500ms"
do = "head-crash"
target = "leader"
[[fault]]
at = "3s"
every = "1s"
times = 4
probability = 0.5
do = "kill-worker"
[expect]
stall = "3s"
"#;

    #[test]
    fn a_scenario_comes_back_from_its_text() {
        for text in [FILE, AGAIN] {
            let before = Scenario::parse(text).expect("it is right");
            assert_eq!(Scenario::parse(&before.to_text()).expect("it was written here"), before);
        }
        let fault = &Scenario::parse(FILE).expect("it is right").faults[0];
        assert_eq!(fault.at(), Duration::from_nanos(1_234_567_891));
    }

    #[test]
    fn what_is_not_known_or_not_possible_is_refused_with_its_reason() {
        let refused = |from: &str, to: &str| {
            let text = FILE.replace(from, to);
            assert_ne!(text, FILE, "{from}");
            Scenario::parse(&text).expect_err("it is wrong")
        };
        assert!(refused("seed =", "seeds =").contains("seeds"));
        assert!(refused("schema = 1", "schema = 2").contains("schema 2"));
        assert!(refused("\"cut-nodes\"", "\"cut-knots\"").contains("cut-knots"));
        assert!(refused("\"2s\"", "\"2 parsecs\"").contains("2 parsecs"));
        assert!(refused("shard = 0", "shard = 64").contains("no shard 64"));
        assert!(refused("\"core\"", "\"full\"").contains("full"));
        assert!(refused("\"cut-nodes\"", "\"head-cut\"").contains("core has no fault \"head-cut\""));
        assert!(refused("nodes = 5", "nodes = 1").contains("1 nodes"));
        assert!(refused("nodes = 5", "nodes = 5\nheads = 4").contains("even"));
        assert!(refused("draw = 9", "times = 9").contains("no `every`"));
        assert!(refused("draw = 9", "every = \"1ms\"").contains("at least"));
        assert!(refused("draw = 9", "every = \"1s\"\njitter = \"1s\"").contains("jitter"));
        assert!(refused("draw = 9", "probability = 2.0").contains("from 0 to 1"));
        assert!(refused("draw = 9", "target = \"leader\"").contains("roles"));
    }

    #[test]
    fn what_comes_again_comes_at_its_times_and_the_seed_decides_the_rest() {
        let scenario = Scenario::parse(AGAIN).expect("it is right");
        let ends = scenario.ends().expect("it says so");
        let moments = scenario.moments(ends);
        assert_eq!(moments, scenario.moments(ends));
        let heads: Vec<&Planned> = moments.iter().filter(|fault| fault.kind == Kind::HeadCrash).collect();
        assert_eq!(heads.len(), 4);
        for (n, fault) in (0..).zip(&heads) {
            let due = Duration::from_secs(2 + 5 * n);
            assert!((due..=due + Duration::from_millis(500)).contains(&fault.at()), "{fault:?}");
        }
        let others = moments.len() - heads.len();
        assert!((1..4).contains(&others), "half of four, by this seed: {others}");
        assert!(moments.is_sorted_by_key(Planned::at));
        let draws: BTreeSet<u64> = heads.iter().map(|fault| fault.draw).collect();
        assert_eq!(draws.len(), heads.len());
    }

    #[test]
    fn kinds_have_the_names_that_files_have() {
        assert_eq!(Kind::HeadCrash.to_string(), "head-crash");
        assert!(Kind::REAL.iter().all(|kind| kind.is_of(Layer::Real)));
    }

    proptest! {
        #[test]
        fn a_scenario_with_changed_bytes_is_understood_or_refused(
            is_first in any::<bool>(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = if is_first { FILE } else { AGAIN }.as_bytes().to_vec();
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
