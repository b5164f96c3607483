//! A cluster of this process: heads and nodes as child processes that end with it.
//!
//! However this process ends, nothing is left: children carry a parent-death signal, a janitor
//! process removes the directory, and every orderly way out goes through [`shut_down_all`].
//!
//! - [`spawner`] — the one thread that starts processes.
//! - [`member`] — one head or node.
//! - [`janitor`], [`ports`], [`log`] — what they need.

pub mod janitor;
pub mod log;
pub mod member;
pub mod ports;
pub mod spawner;

use crate::datadir::Ready;
use crate::process::Process;
use janitor::Janitor;
pub use member::Heads;
use member::{Member, NotUp};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How often a cluster is formed anew because somebody took one of its ports.
const PORT_TRIES: usize = 5;
/// How long members may take to come up.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long workers may take to notice that their daemon is gone before they are killed.
const WORKER_PATIENCE: Duration = Duration::from_secs(2);

/// What a cluster consists of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Replicas of the control store.
    pub heads: usize,
    /// Node daemons. Node `i` offers the named resource `node-i`.
    pub nodes: usize,
    /// Shards of the control store.
    pub shards: u32,
    /// CPUs and worker processes of each node.
    pub workers: u32,
    /// Shared memory of each node, MB.
    pub store_mb: u64,
}

/// A running cluster. Heads and nodes are numbered from 1.
pub struct LocalCluster(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    shape: Option<Shape>,
    heads: Vec<Member>,
    nodes: Vec<Member>,
    helpers: Vec<Process>,
    common: Heads,
    /// Further options of nodes, by number.
    options: BTreeMap<usize, Vec<String>>,
    janitor: Option<Janitor>,
    is_closed: bool,
}

/// One of the members, by its number.
#[derive(Clone, Copy)]
enum Who {
    Head(usize),
    Node(usize),
}

impl State {
    fn member(&mut self, who: Who) -> &mut Member {
        match who {
            Who::Head(number) => &mut self.heads[number - 1],
            Who::Node(number) => &mut self.nodes[number - 1],
        }
    }

    /// Node `number`, to be started.
    fn node(&self, dir: &Path, number: usize) -> member::Order {
        let shape = self.shape.expect("heads are started first");
        let options = self.options.get(&number).cloned().unwrap_or_default();
        member::node(dir, number, &self.common, shape.workers, shape.store_mb, &options)
    }
}

/// Clusters to take along on the way out.
static LIVE: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Ends every cluster of this process.
pub fn shut_down_all() {
    let live = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
    for inner in live.iter().filter_map(Weak::upgrade) {
        inner.shut_down();
    }
}

impl LocalCluster {
    /// Makes a directory for a cluster. With `keep` it stays.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn prepare(keep: bool) -> Result<LocalCluster, String> {
        let dir = janitor::fresh_dir().map_err(|e| {
            format!("cannot make a directory in {}: {e}; set TMPDIR", std::env::temp_dir().display())
        })?;
        let janitor = if keep {
            None
        } else {
            Some(Janitor::start(&dir).map_err(|e| format!("cannot start a process: {e}"))?)
        };
        let state = State { janitor, ..State::default() };
        let inner = Arc::new(Inner { dir, state: Mutex::new(state) });
        LIVE.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&inner));
        Ok(LocalCluster(inner))
    }

    /// Node `number` is to have a label, KEY=VALUE, from its start on.
    pub fn label(&self, number: usize, label: String) {
        self.option(number, "--label", label);
    }

    /// Node `number` is to be started with this option.
    pub fn option(&self, number: usize, name: &str, value: String) {
        self.0.state().options.entry(number).or_default().extend([name.to_owned(), value]);
    }

    /// Starts the members and waits until every one of them serves.
    ///
    /// # Errors
    /// A member did not come up, with what it said.
    pub fn start(&self, shape: Shape) -> Result<(), String> {
        self.start_with(shape, &Heads::default())
    }

    /// As [`LocalCluster::start`], with heads as in `special`, whose addresses and shards are filled in.
    ///
    /// # Errors
    /// A member did not come up, with what it said.
    pub fn start_with(&self, shape: Shape, special: &Heads) -> Result<(), String> {
        for attempt in 1.. {
            match self.form(shape, special) {
                Ok(()) => break,
                Err(NotUp::PortInUse(_)) if attempt < PORT_TRIES => self.0.clear(),
                Err(NotUp::PortInUse(why) | NotUp::Failed(why)) => return Err(why),
            }
        }
        Ok(())
    }

    /// Ends `helper`, a child of this process, with the cluster.
    pub fn adopt(&self, helper: Process) {
        self.0.state().helpers.push(helper);
    }

    /// Starts all members at once, and waits for them.
    fn form(&self, shape: Shape, special: &Heads) -> Result<(), NotUp> {
        let addresses = ports::free_addresses(shape.heads)
            .map_err(|e| NotUp::Failed(format!("cannot find free ports on the loopback interface: {e}")))?;
        let heads = Heads { addresses: addresses.clone(), shards: shape.shards, ..special.clone() };
        {
            let mut state = self.0.state();
            (state.common, state.shape) = (heads.clone(), Some(shape));
        }
        for number in 1..=shape.heads {
            let order = member::head(&self.0.dir, number, &heads);
            self.add(order, |state| &mut state.heads)?;
        }
        for i in 1..=shape.nodes {
            let order = self.0.state().node(&self.0.dir, i);
            self.add(order, |state| &mut state.nodes)?;
        }
        let deadline = Instant::now() + START_PATIENCE;
        while !self.0.are_all_up(Instant::now() >= deadline)? {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn add(&self, order: member::Order, list: impl Fn(&mut State) -> &mut Vec<Member>) -> Result<(), NotUp> {
        let mut state = self.0.state();
        if state.is_closed {
            return Err(NotUp::Failed("the cluster is being shut down".into()));
        }
        // Under the lock: a member is in the list as soon as it exists.
        let member = order.start()?;
        list(&mut state).push(member);
        Ok(())
    }

    /// Where everything of this cluster lies.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Addresses of all heads, in order of their numbers.
    pub fn head_addresses(&self) -> Vec<String> {
        self.0.state().heads.iter().map(|m| m.address.clone()).collect()
    }

    /// What node `number` said when it came up.
    pub fn node(&self, number: usize) -> Option<Ready> {
        self.0.state().nodes.get(number.wrapping_sub(1))?.ready.clone()
    }

    /// Where other nodes reach each node that is up, and its metrics are.
    pub fn nodes(&self) -> Vec<String> {
        let state = self.0.state();
        let ready = state.nodes.iter().filter_map(|member| member.ready.as_ref());
        ready.filter_map(|ready| ready.peer_address.clone()).collect()
    }

    /// The processes of all daemons: heads, then nodes.
    pub fn processes(&self) -> Vec<Process> {
        let state = self.0.state();
        state.heads.iter().chain(&state.nodes).map(|m| m.process).collect()
    }

    /// Sends SIGKILL to head `number`; the moment just before.
    pub fn kill_head(&self, number: usize) -> Instant {
        kill(self.0.state().heads.get_mut(number - 1))
    }

    /// Sends SIGKILL to all heads before it waits for the first.
    pub fn kill_all_heads(&self) {
        let mut state = self.0.state();
        for head in &state.heads {
            head.process.signal(Signal::KILL);
        }
        state.heads.iter_mut().for_each(Member::kill);
    }

    /// Sends SIGKILL to node `number`; the moment just before.
    pub fn kill_node(&self, number: usize) -> Instant {
        kill(self.0.state().nodes.get_mut(number - 1))
    }

    /// Starts head `number` again, which was killed, and waits until it serves.
    ///
    /// # Errors
    /// It does not come up, with what it said.
    pub fn restart_head(&self, number: usize) -> Result<(), String> {
        self.restart(Who::Head(number))
    }

    /// Starts node `number` again, which was killed, and waits until it serves: in a new life, with an empty store.
    ///
    /// # Errors
    /// It does not come up, with what it said.
    pub fn restart_node(&self, number: usize) -> Result<(), String> {
        self.restart(Who::Node(number))
    }

    fn restart(&self, who: Who) -> Result<(), String> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match self.0.revive(who, deadline) {
                Ok(()) => return Ok(()),
                // A connection of somebody's has its port for a moment: it is one that the system gives away.
                Err(NotUp::PortInUse(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(NotUp::PortInUse(why) | NotUp::Failed(why)) => return Err(why),
            }
        }
    }

    /// The process of node `number`.
    pub fn node_process(&self, number: usize) -> Process {
        self.0.state().nodes[number - 1].process
    }

    /// The data directory of node `number`.
    pub fn node_dir(&self, number: usize) -> crate::datadir::DataDir {
        self.0.state().nodes[number - 1].dir().clone()
    }

    /// The process of head `number`.
    pub fn head_process(&self, number: usize) -> Process {
        self.0.state().heads[number - 1].process
    }

    /// The data directory of head `number`.
    pub fn head_dir(&self, number: usize) -> crate::datadir::DataDir {
        self.0.state().heads[number - 1].dir().clone()
    }

    /// The first member that ended without being told to, with what it said.
    pub fn first_casualty(&self) -> Option<String> {
        let mut state = self.0.state();
        let State { heads, nodes, .. } = &mut *state;
        heads.iter_mut().chain(nodes).find_map(Member::casualty)
    }
}

fn kill(member: Option<&mut Member>) -> Instant {
    let at = Instant::now();
    member.expect("victims were checked against the size of the cluster").kill();
    at
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not keep us from ending the children.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a killed member again in its place, and waits for it.
    fn revive(&self, who: Who, deadline: Instant) -> Result<(), NotUp> {
        {
            let mut state = self.state();
            if state.is_closed {
                return Err(NotUp::Failed("the cluster is being shut down".into()));
            }
            state.member(who).kill();
            let order = match who {
                Who::Head(number) => member::head(&self.dir, number, &state.common),
                Who::Node(number) => state.node(&self.dir, number),
            };
            // Under the lock: a member is in the list as soon as it exists.
            *state.member(who) = order.start()?;
        }
        loop {
            let is_late = Instant::now() >= deadline;
            let mut state = self.state();
            // Whoever shuts the cluster down has taken its members.
            if state.is_closed || state.member(who).poll(is_late)? {
                return Ok(());
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn are_all_up(&self, is_late: bool) -> Result<bool, NotUp> {
        let mut state = self.state();
        let State { heads, nodes, .. } = &mut *state;
        let mut failed = None;
        let mut all_up = true;
        for member in heads.iter_mut().chain(nodes) {
            match member.poll(is_late) {
                Ok(is_up) => all_up &= is_up,
                // A taken port explains all other failures.
                Err(in_use @ NotUp::PortInUse(_)) => return Err(in_use),
                Err(other) => failed = failed.or(Some(other)),
            }
        }
        failed.map_or(Ok(all_up), Err)
    }

    /// Ends all members, so that the cluster can be formed anew.
    fn clear(&self) {
        let (heads, nodes) = {
            let mut state = self.state();
            (std::mem::take(&mut state.heads), std::mem::take(&mut state.nodes))
        };
        end(heads.into_iter().chain(nodes).collect());
        if let Ok(entries) = std::fs::read_dir(&self.dir) {
            for entry in entries.flatten() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn shut_down(&self) {
        let (members, helpers, janitor) = {
            let mut state = self.state();
            state.is_closed = true;
            let mut members = std::mem::take(&mut state.heads);
            members.append(&mut state.nodes);
            (members, std::mem::take(&mut state.helpers), state.janitor.take())
        };
        for helper in helpers {
            helper.signal(Signal::KILL);
        }
        end(members);
        if let Some(janitor) = janitor {
            janitor.finish();
        }
    }
}

/// Kills members and sees their workers off.
fn end(mut members: Vec<Member>) {
    let workers: Vec<Process> = members.iter().flat_map(|m| m.process.children()).collect();
    for member in &mut members {
        member.kill();
    }
    let deadline = Instant::now() + WORKER_PATIENCE;
    for worker in workers {
        if !worker.wait_end(deadline.saturating_duration_since(Instant::now())) {
            worker.signal(Signal::KILL);
        }
    }
}
