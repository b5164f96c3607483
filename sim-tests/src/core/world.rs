//! All of a simulated cluster, and the loop that takes event after event.

use super::calls::{Answer, Ask};
use super::dice::Dice;
use super::driver::Driver;
use super::faults::Faults;
use super::judge::Judges;
use super::life::{Input, Life, Told};
use super::net::{Net, Place};
use super::options::Options;
use super::program::{Content, JOB, Oracle};
use super::queue::Queue;
use super::shard::{Key, Shard};
use super::sometimes::Sometimes;
use super::trace::Trace;
use mobula_base::{Instant, ObjectId};
use mobula_gcs::core::beats::Beats;
use mobula_gcs::core::silence::Court;
use mobula_objstore::depot::File;
use mobula_proto::{ClusterView, PeerMsg};
use mobula_scheduler::ClientId;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// A run that takes more events than this goes round in circles.
const EVENTS_MAX: u64 = 3_000_000;

/// Judges are asked after so many events.
const VERDICT_EVERY: u64 = 8;

/// Something that happens.
pub enum What {
    /// The control store forms; nodes start.
    Begin,
    /// A machine's daemon starts (or joins again).
    Start { machine: usize, epoch: u64 },
    /// Something comes into a daemon's inbox.
    Input { machine: usize, epoch: u64, input: Input },
    /// A daemon looks at its inbox.
    Turn { machine: usize, epoch: u64 },
    /// A client hears from its daemon.
    ToClient { machine: usize, epoch: u64, client: ClientId, told: Told },
    /// A worker process has come up.
    WorkerUp { machine: usize, epoch: u64 },
    /// A worker has computed for a while.
    Worked { machine: usize, epoch: u64, client: ClientId, run: u64 },
    /// The driver's next step.
    Drive,
    /// Its process is gone.
    DriverDies,
    /// A frame reaches another node.
    Frame {
        from: (usize, u64, u64),
        to: (usize, u64),
        connection: u64,
        first_seq: u64,
        msgs: Rc<Vec<PeerMsg>>,
    },
    /// Its acknowledgement comes back.
    FrameAck { machine: usize, epoch: u64, to: u64, connection: u64, mark: u64 },
    /// A sender looks whether there was progress.
    Progress { machine: usize, epoch: u64, to: u64 },
    /// A request reaches a head.
    Arrive { machine: usize, epoch: u64, head: usize, key: Key, ask: Ask },
    /// Its answer reaches the node.
    Answered { machine: usize, epoch: u64, key: Key, answer: Answer },
    /// A request failed, as far as the node can tell.
    Failed { machine: usize, epoch: u64, key: Key },
    /// A batch is to be sent again.
    Repeat { machine: usize, epoch: u64, shard: usize },
    /// A call is to be made again.
    CallAgain { machine: usize, epoch: u64 },
    /// Holdings are to be looked at.
    Report { machine: usize, epoch: u64, shard: usize },
    /// Time for a heartbeat.
    Beat { machine: usize, epoch: u64 },
    /// A question is asked.
    Locate { machine: usize, epoch: u64, id: u64 },
    /// The fetch of an object reaches its holder.
    Fetch { machine: usize, epoch: u64, from: (usize, u64), object: ObjectId, want: mobula_proto::Output },
    /// A file has been written, or not taken.
    FileWritten { machine: usize, epoch: u64, object: ObjectId, file: File, content: Content },
    /// A file has been read.
    FileRead { machine: usize, epoch: u64, object: ObjectId, file: File, offset: u64 },
    /// An entry may have committed.
    Commit { shard: usize, term: u64 },
    /// A leader is elected.
    Elected { shard: usize, term: u64, head: usize },
    /// Parked questions are looked at again.
    Wake { shard: usize },
    /// A parked question's time is up.
    ParkEnds { shard: usize },
    /// A leader's replica of shard 0 catches up.
    RootSeen { shard: usize, members: Rc<mobula_gcs::core::locate::Members> },
    /// A leader looks for members that say nothing.
    Watch { shard: usize },
    /// The leader of shard 0 looks at the heartbeats.
    Detect,
    /// A leader sees to its fences.
    Fence { shard: usize },
    /// Another shard has (or has not) answered what it was told of edges.
    EndsTold { from: usize, round: u64, to: usize, again: Option<Vec<u64>> },
    /// A leader looks at what waits in its shard.
    Sweep { shard: usize },
    /// Leaders look for jobs that are over.
    Forget,
    /// A view comes to a node.
    ViewComes { machine: usize, epoch: u64, view: Rc<ClusterView> },
    /// A fault is drawn.
    Strike,
    /// A fault that waited for its moment strikes.
    Sprung(Box<super::ambush::Sprung>),
    /// Something heals.
    Heal(super::faults::Healing),
    /// All heals; nothing new is begun.
    Quiet,
    /// Is everything over?
    Check,
    /// Is all there that is referred to?
    Look,
}

/// A machine with a node daemon.
pub struct Machine {
    /// Counts its lives, and the starts of its daemon.
    pub epoch: u64,
    /// The daemon's life, once it has joined.
    pub life: Option<Box<Life>>,
    /// The daemon runs (it may be joining).
    pub up: bool,
    /// Stands still until then.
    pub paused: Instant,
    /// Everything takes so many times longer until then.
    pub slow: (Instant, u64),
    /// Which head it takes for the leader of each shard.
    pub leads: Vec<usize>,
    /// Its session at shard 0.
    pub session: Option<u64>,
    /// Number of the session's next call.
    pub next_call: u64,
    /// Calls to make, the first is under way.
    pub calls: VecDeque<mobula_proto::call::Op>,
    /// Which try the first is at.
    pub call_tries: u64,
    /// Where values lie that left memory.
    pub disk: super::room::Disk,
}

/// A simulated cluster.
pub struct World {
    /// How it was drawn.
    pub options: Options,
    /// What is to come.
    pub queue: Queue<What>,
    /// What happened.
    pub trace: Trace,
    /// Runtime draws.
    pub dice: Dice,
    /// The network.
    pub net: Net,
    /// Nodes.
    pub machines: Vec<Machine>,
    /// The control store.
    pub shards: Vec<Shard>,
    /// Which heads run.
    pub heads: Vec<bool>,
    /// Soft state of shard 0's leader.
    pub beats: Beats,
    /// The same.
    pub court: Court,
    /// The newest committed view.
    pub view: Rc<ClusterView>,
    /// The program's driver.
    pub driver: Driver,
    /// What the program must come to.
    pub oracle: Oracle,
    /// What must hold.
    pub judges: Judges,
    /// What comes in between.
    pub faults: Faults,
    /// What was reached.
    pub sometimes: Sometimes,
    /// No more faults, and the driver only waits.
    pub quiet: bool,
    /// It has ended.
    pub over: bool,
    /// Events so far.
    happened: u64,
}

impl World {
    /// A cluster before its first event.
    pub fn new(options: Options, with_text: bool) -> Self {
        let seed = options.seed;
        let mut oracle = Oracle::default();
        let driver = Driver::new(&options, &mut oracle);
        let machine = |_| Machine {
            epoch: 0,
            life: None,
            up: false,
            paused: Instant::default(),
            slow: (Instant::default(), 1),
            leads: vec![0; options.shards],
            session: None,
            next_call: 1,
            calls: VecDeque::new(),
            call_tries: 0,
            disk: super::room::Disk::default(),
        };
        let mut world = World {
            queue: Queue::default(),
            trace: Trace::new(with_text),
            dice: Dice::new(seed, "world"),
            net: Net::new(seed, options.latency_us),
            machines: (0..options.nodes).map(machine).collect(),
            shards: (0..options.shards).map(|shard| Shard::new(shard, options.hot_bytes)).collect(),
            heads: vec![true; options.heads],
            beats: Beats::default(),
            court: Court::default(),
            view: Rc::default(),
            driver,
            oracle,
            judges: Judges::default(),
            faults: Faults::new(&options),
            sometimes: Sometimes::default(),
            quiet: false,
            over: false,
            happened: 0,
            options,
        };
        // Where there is a disk, whoever finds no room waits.
        let (small, disk) = (world.options.store_bytes < super::options::AMPLE, world.options.disk_us);
        world.judges.cause.store_full = small && disk.is_none();
        world.queue.after(Duration::ZERO, What::Begin);
        world
    }

    /// Now.
    pub fn now(&self) -> Instant {
        self.queue.now()
    }

    /// Runs until it is over or a judge objects.
    pub fn run(&mut self) {
        // A verdict is for good: it need not be asked for after each event.
        while !self.over && (!self.happened.is_multiple_of(VERDICT_EVERY) || self.judges.verdict().is_none())
        {
            let Some(what) = self.queue.pop() else { return };
            self.happened += 1;
            if self.happened > EVENTS_MAX {
                return self.judges.harness(format!("{EVENTS_MAX} events and no end, at {:?}", self.now()));
            }
            self.happens(what);
        }
    }

    /// Notes an event in the trace.
    pub fn note(
        &mut self,
        kind: &'static str,
        place: u64,
        life: u64,
        payload: u64,
        text: impl FnOnce() -> String,
    ) {
        self.trace.note(self.queue.now(), kind, place, life, payload, text);
    }

    /// Whether a machine's daemon is still in this epoch.
    pub fn is_epoch(&self, machine: usize, epoch: u64) -> bool {
        self.machines[machine].up && self.machines[machine].epoch == epoch
    }

    /// The life of a machine, if it is still in this epoch.
    pub fn life(&mut self, machine: usize, epoch: u64) -> Option<&mut Life> {
        let machine = &mut self.machines[machine];
        if machine.up && machine.epoch == epoch { machine.life.as_deref_mut() } else { None }
    }

    /// How much longer something takes on a machine that is slow.
    pub fn slowed(&self, machine: usize, takes: Duration) -> Duration {
        let (until, times) = self.machines[machine].slow;
        if until > self.now() { takes * times as u32 } else { takes }
    }

    /// Where a machine is in the network.
    pub fn place(machine: usize) -> Place {
        Place::Node(machine)
    }

    /// What stands still happens when the machine goes on.
    fn paused(&mut self, what: &What) -> Option<Instant> {
        let machine = match what {
            What::Start { machine, .. }
            | What::Turn { machine, .. }
            | What::Input { machine, .. }
            | What::ToClient { machine, .. }
            | What::WorkerUp { machine, .. }
            | What::Worked { machine, .. }
            | What::FrameAck { machine, .. }
            | What::Progress { machine, .. }
            | What::Answered { machine, .. }
            | What::Failed { machine, .. }
            | What::Repeat { machine, .. }
            | What::CallAgain { machine, .. }
            | What::Report { machine, .. }
            | What::Beat { machine, .. }
            | What::Locate { machine, .. }
            | What::FileWritten { machine, .. }
            | What::FileRead { machine, .. }
            | What::ViewComes { machine, .. } => *machine,
            What::Frame { to, .. } => to.0,
            What::Fetch { from, .. } => from.0,
            What::Drive | What::DriverDies => 0,
            What::Begin
            | What::Arrive { .. }
            | What::Commit { .. }
            | What::Elected { .. }
            | What::Wake { .. }
            | What::ParkEnds { .. }
            | What::RootSeen { .. }
            | What::Watch { .. }
            | What::Detect
            | What::EndsTold { .. }
            | What::Sweep { .. }
            | What::Forget
            | What::Fence { .. }
            | What::Strike
            | What::Sprung(_)
            | What::Heal(_)
            | What::Quiet
            | What::Check
            | What::Look => return None,
        };
        Some(self.machines[machine].paused).filter(|until| *until > self.now())
    }

    fn happens(&mut self, what: What) {
        if let Some(until) = self.paused(&what) {
            return self.queue.at(until, what);
        }
        match what {
            What::Begin => self.begin(),
            What::Start { machine, epoch } => self.start(machine, epoch),
            What::Input { machine, epoch, input } => self.input(machine, epoch, input),
            What::Turn { machine, epoch } => self.turn(machine, epoch),
            What::ToClient { machine, epoch, client, told } => self.client_told(machine, epoch, client, told),
            What::WorkerUp { machine, epoch } => self.worker_up(machine, epoch),
            What::Worked { machine, epoch, client, run } => self.worked(machine, epoch, client, run),
            What::Drive => self.drive(),
            What::DriverDies => self.driver_dies(),
            What::Frame { from, to, connection, first_seq, msgs } => {
                self.frame(from, to, connection, first_seq, &msgs);
            }
            What::FrameAck { machine, epoch, to, connection, mark } => {
                self.frame_ack(machine, epoch, to, connection, mark);
            }
            What::Progress { machine, epoch, to } => self.progress(machine, epoch, to),
            What::Arrive { machine, epoch, head, key, ask } => self.arrive(machine, epoch, head, key, ask),
            What::Answered { machine, epoch, key, answer } => self.answered(machine, epoch, key, answer),
            What::Failed { machine, epoch, key } => self.failed(machine, epoch, key),
            What::Repeat { machine, epoch, shard } => self.repeat(machine, epoch, shard),
            What::CallAgain { machine, epoch } => self.call_again(machine, epoch),
            What::Report { machine, epoch, shard } => self.report(machine, epoch, shard),
            What::Beat { machine, epoch } => self.beat(machine, epoch),
            What::Locate { machine, epoch, id } => self.locate_again(machine, epoch, id),
            What::Fetch { machine, epoch, from, object, want } => {
                self.fetched(machine, epoch, from, object, want);
            }
            What::FileWritten { machine, epoch, object, file, content } => {
                self.file_written(machine, epoch, object, file, content);
            }
            What::FileRead { machine, epoch, object, file, offset } => {
                self.file_read(machine, epoch, object, file, offset);
            }
            What::Commit { shard, term } => self.commit(shard, term),
            What::Elected { shard, term, head } => self.elected(shard, term, head),
            What::Wake { shard } => self.wake(shard),
            What::ParkEnds { shard } => self.park_ends(shard),
            What::RootSeen { shard, members } => self.root_seen(shard, members),
            What::Watch { shard } => self.watch(shard),
            What::Detect => self.detect(),
            What::Fence { shard } => self.fence(shard),
            What::EndsTold { from, round, to, again } => self.ends_told(from, round, to, again),
            What::Sweep { shard } => self.look_after_references(shard),
            What::Forget => self.forget_jobs(),
            What::ViewComes { machine, epoch, view } => self.view_comes(machine, epoch, view),
            What::Strike => self.strike(),
            What::Sprung(sprung) => self.sprung(*sprung),
            What::Heal(healing) => self.heal(healing),
            What::Quiet => self.go_quiet(),
            What::Check => self.check(),
            What::Look => {
                self.judge_closure();
                self.judge_running();
                self.queue.after(super::judge::LOOK * 6, What::Look);
            }
        }
    }

    fn begin(&mut self) {
        self.form();
        for machine in 0..self.machines.len() {
            let epoch = self.machines[machine].epoch;
            self.machines[machine].up = true;
            let after = self.dice.ms(0, 100);
            self.queue.after(after, What::Start { machine, epoch });
        }
        self.plan_strikes();
        self.queue.after(super::judge::LOOK * 6, What::Look);
        self.queue.after(self.options.faults_end, What::Quiet);
    }

    /// Faults end, and all heals; what was begun must come to an end now.
    fn go_quiet(&mut self) {
        self.quiet = true;
        self.note("quiet", 0, 0, 0, String::new);
        self.heal_all();
        if self.options.driver_dies.is_none() {
            self.driver.want_all();
        }
        self.queue.after(Duration::from_millis(1), What::Drive);
        self.queue.after(super::judge::LOOK, What::Check);
    }

    fn check(&mut self) {
        if self.judge_end() {
            self.over = true;
        } else {
            self.queue.after(super::judge::LOOK, What::Check);
        }
    }

    /// The job's number, for messages.
    pub fn job(&self) -> u64 {
        JOB.0
    }
}
