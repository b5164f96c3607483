//! Scenario files in this layer: a seed's run written down as one, and what one is drawn as.

use super::options::{Options, Profile};
pub use mobula_chaos::scenario::{
    Cluster, Expect, Kind, Layer, Planned, SCHEMA, Scenario, Work, Workload, parse_time, time_text,
};

/// The seed's own run, with the faults that landed in it.
pub fn of(seed: u64, options: &Options, faults: Vec<Planned>) -> Scenario {
    let (nodes, shards) = (Some(options.nodes), Some(options.shards));
    Scenario {
        schema: SCHEMA,
        name: format!("seed {seed}"),
        layers: vec![Layer::Core],
        seed,
        ends: Some(time_text(options.faults_end)),
        cluster: Cluster { nodes, shards, ..Cluster::default() },
        workload: Workload::default(),
        faults,
        expect: Expect::default(),
    }
}

/// What a run of it is drawn as.
pub fn options(scenario: &Scenario) -> Options {
    let mut options = Options::draw(scenario.seed, Some(Profile::Swarm));
    let cluster = &scenario.cluster;
    if let Some(nodes) = cluster.nodes {
        let cpus = options.cpus.clone();
        options.cpus = (0..nodes).map(|node| cpus[node % cpus.len()]).collect();
        options.nodes = nodes;
    }
    if let Some(cpus) = cluster.cpus {
        options.cpus.fill(u64::from(cpus));
    }
    options.heads = cluster.heads.unwrap_or(options.heads);
    options.shards = cluster.shards.unwrap_or(options.shards);
    if scenario.workload.kind == Work::Objects {
        options.style.large_permille =
            options.style.large_permille.max(mobula_chaos::style::OBJECTS_PERMILLE);
    }
    options.faults_end = scenario.ends().unwrap_or(options.faults_end);
    options.without = scenario.workload.without.clone();
    options.plan = Some(scenario.moments(options.faults_end));
    options
}

/// A file that may be anything: what is understood can be drawn a run of. The fuzz target `scenario` and a test here
/// call this.
pub fn hostile(bytes: &[u8]) {
    let Some(scenario) = mobula_chaos::scenario::hostile(bytes) else { return };
    if scenario.suits(Layer::Core).is_ok() {
        let options = options(&scenario);
        assert_eq!(options.nodes, options.cpus.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_seed_that_is_written_down_is_drawn_as_it_was() {
        let before = Options::draw(3, Some(Profile::Swarm));
        let fault = Planned { shard: Some(0), ..Planned::of(Duration::from_secs(2), Kind::CutNodes, 9) };
        let scenario = of(3, &before, vec![fault.clone()]);
        let text = scenario.to_text();
        assert_eq!(Scenario::parse(&text).as_ref(), Ok(&scenario));
        let after = options(&scenario);
        assert_eq!((after.nodes, after.shards, &after.cpus), (before.nodes, before.shards, &before.cpus));
        assert_eq!(after.plan, Some(vec![fault]));
        hostile(text.as_bytes());
    }
}
