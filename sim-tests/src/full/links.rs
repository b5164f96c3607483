//! Links between hosts, and what is wrong with them: one thing at a time for each.

use std::collections::BTreeSet;
use std::time::Duration;
use turmoil::Sim;

/// The longest latency of a link that nothing is wrong with.
pub const LATENCY: Duration = Duration::from_millis(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Cut,
    /// From the host to the others, or the other way.
    OneWay {
        out: bool,
    },
    Held,
    Late(Duration),
}

/// Something wrong with the links of a host.
#[derive(Clone, Debug)]
pub struct Wrong {
    how: How,
    host: String,
    others: Vec<String>,
}

impl Wrong {
    fn new(how: How) -> Self {
        Wrong { how, host: String::new(), others: Vec::new() }
    }

    /// Nothing passes, and it is lost.
    pub fn cut() -> Self {
        Wrong::new(How::Cut)
    }

    /// Nothing passes one way, and it is lost.
    pub fn one_way(out: bool) -> Self {
        Wrong::new(How::OneWay { out })
    }

    /// Nothing passes until it is healed, and then all of it.
    pub fn held() -> Self {
        Wrong::new(How::Held)
    }

    /// Everything takes so long.
    pub fn late(latency: Duration) -> Self {
        Wrong::new(How::Late(latency))
    }
}

/// All links.
#[derive(Default)]
pub struct Links {
    busy: BTreeSet<(String, String)>,
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.min(b).to_owned(), a.max(b).to_owned())
}

impl Links {
    /// Lands on the links between a host and others, unless something is wrong with one of them.
    pub fn land(&mut self, sim: &Sim<'_>, wrong: &mut Wrong, host: &str, others: &[String]) -> bool {
        if others.is_empty() || others.iter().any(|other| self.busy.contains(&pair(host, other))) {
            return false;
        }
        host.clone_into(&mut wrong.host);
        wrong.others = others.to_vec();
        for other in others {
            self.busy.insert(pair(host, other));
            match wrong.how {
                How::Cut => sim.partition(host, other.as_str()),
                How::OneWay { out: true } => sim.partition_oneway(host, other.as_str()),
                How::OneWay { out: false } => sim.partition_oneway(other.as_str(), host),
                How::Held => sim.hold(host, other.as_str()),
                How::Late(latency) => sim.set_link_latency(host, other.as_str(), latency),
            }
        }
        true
    }

    /// Heals them, in the other order.
    pub fn heal(&mut self, sim: &Sim<'_>, wrong: &Wrong) {
        let host = wrong.host.as_str();
        for other in wrong.others.iter().rev() {
            self.busy.remove(&pair(host, other));
            match wrong.how {
                How::Cut => sim.repair(host, other.as_str()),
                How::OneWay { out: true } => sim.repair_oneway(host, other.as_str()),
                How::OneWay { out: false } => sim.repair_oneway(other.as_str(), host),
                How::Held => sim.release(host, other.as_str()),
                How::Late(_) => sim.set_link_latency(host, other.as_str(), LATENCY),
            }
        }
    }
}
