//! What goes wrong on the wire without a cut: calls, method by method, and whole connections.

use super::state;
use super::world::{HOME, node_name};
use crate::net::SimNet;
use crate::store::wire::{Mood, MoodyNet, Odds};
use crate::trace;
use mobula_base::random::Random;
use mobula_net::calls::{Calls, Fate};
use mobula_net::{BoxFuture, Listener, Net, Stream};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

/// Methods whose calls may go wrong, with what stands before them.
pub const METHODS: [&str; 15] = [
    "ControlStore/Propose",
    "ControlStore/ProposeStream",
    "ControlStore/Locate",
    "ControlStore/Holding",
    HEARTBEAT,
    "ControlStore/Suspect",
    "ControlStore/Watch",
    "ControlStore/Read",
    "ControlStore/Status",
    "ControlStore/Leader",
    "Raft/Append",
    "Raft/Vote",
    "Raft/PreVote",
    "Raft/Snapshot",
    "Raft/Transfer",
];
const HEARTBEAT: &str = "ControlStore/Heartbeat";

/// The moods of a network.
#[derive(Clone)]
pub struct Wires {
    seed: u64,
    moods: Rc<RefCell<BTreeMap<String, Mood>>>,
    table: Arc<Mutex<Table>>,
}

struct Table {
    odds: BTreeMap<&'static str, Odds>,
    random: Random,
}

impl Wires {
    /// Nothing goes wrong yet.
    pub fn new(seed: u64) -> Self {
        let random = Random::new(seed).fork("calls");
        let table = Arc::new(Mutex::new(Table { odds: BTreeMap::new(), random }));
        Wires { seed, moods: Rc::default(), table }
    }

    /// The network as a host sees it.
    pub fn net(&self, host: &str) -> FullNet {
        let mood = || Mood::new(Random::new(self.seed).fork(&format!("mood {host}")).next_u64());
        let mood = self.moods.borrow_mut().entry(host.to_owned()).or_insert_with(mood).clone();
        let net = MoodyNet { net: SimNet { host: host.to_owned() }, mood };
        let is_home = host == node_name(HOME);
        FullNet { net, calls: Arc::new(HostCalls { table: self.table.clone(), is_home }) }
    }

    /// From now on calls fare so, by method.
    pub fn set_calls(&self, odds: BTreeMap<&'static str, Odds>) {
        self.table.lock().expect("one thread").odds = odds;
    }

    /// From now on connections fare so. Those of the driver's node are not swallowed: it must live.
    pub fn set_connections(&self, odds: Odds) {
        for (host, mood) in self.moods.borrow().iter() {
            let gentle = Odds { in_flight: odds.in_flight, ..Odds::default() };
            mood.set(if *host == node_name(HOME) { gentle } else { odds });
        }
    }
}

/// A simulated network on which calls and connections may go wrong.
pub struct FullNet {
    net: MoodyNet,
    calls: Arc<HostCalls>,
}

impl Net for FullNet {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        self.net.listen(address)
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        self.net.dial(address)
    }

    fn calls(&self) -> Option<Arc<dyn Calls>> {
        Some(self.calls.clone())
    }
}

struct HostCalls {
    table: Arc<Mutex<Table>>,
    is_home: bool,
}

impl Calls for HostCalls {
    fn fate(&self, address: &str, method: &str) -> Fate {
        let table = &mut *self.table.lock().expect("one thread");
        let short = method.trim_start_matches("/mobula.v1.");
        let Some(odds) = table.odds.get(short) else { return Fate::Pass };
        // The driver's node must not be taken for dead.
        if self.is_home && short == HEARTBEAT {
            return Fate::Pass;
        }
        let roll = table.random.below(1000);
        let (request, response) = (odds.request, odds.request + odds.response);
        let (fate, point) = match roll {
            roll if roll < request => (Fate::RequestLost, "request lost"),
            roll if roll < response => (Fate::AnswerLost, "request unanswered"),
            roll if roll < response + odds.in_flight => {
                (Fate::InFlight, "request in flight when the caller gave up")
            }
            _ => return Fate::Pass,
        };
        state::hit(point);
        trace::note(format!("{short} to {address}: {fate:?}"));
        fate
    }
}
