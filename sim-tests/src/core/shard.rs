//! One shard: the production tables behind a simulated replicated log, and the soft state of its leader.

use super::net::Place;
use bytes::Bytes;
use mobula_base::Instant;
use mobula_base::sim_disk::SimDisk;
use mobula_gcs::cold;
use mobula_gcs::core::ShardState;
use mobula_gcs::core::holdings::Holdings;
use mobula_gcs::core::locate::Members;
use mobula_gcs::core::silence::{SILENT_AFTER, Watcher};
use mobula_proto::{Command, Delivered};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// Whom an entry's reply is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody waits.
    Nobody,
    /// A request of a machine.
    Machine { machine: usize, epoch: u64, key: Key },
    /// The leader of another shard that tells of edges that have ended.
    Ends { from: usize, round: u64 },
}

/// Which request of a node this is about; a later try has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A batch of a stream.
    Stream { shard: usize, tries: u64 },
    /// A question.
    Locate(u64),
    /// A report.
    Holding { shard: usize, tries: u64 },
    /// A heartbeat.
    Beat(u64),
    /// A call of a session.
    Call(u64),
    /// Word of a suspect: nobody waits for the answer.
    Suspect,
}

/// An entry that is not committed.
pub struct Entry {
    /// What it does.
    pub command: Rc<Command>,
    /// Who waits.
    pub caller: Caller,
    /// When a majority has it.
    pub commits: Instant,
}

/// A question that waits for better news.
pub struct Parked {
    /// Who asked.
    pub machine: usize,
    /// In which life.
    pub epoch: u64,
    /// Which question.
    pub key: Key,
    /// As which incarnation.
    pub asker: u64,
    /// About what.
    pub objects: Vec<Bytes>,
    /// It is answered by then, whatever there is to say.
    pub until: Instant,
}

/// A leader that does not know yet that there is another.
pub struct Deposed {
    /// Where.
    pub head: usize,
    /// What it has applied.
    pub state: ShardState,
    /// What was reported to it.
    pub holdings: Holdings,
    /// Whom it takes for live.
    pub members: Rc<Members>,
    /// Its term.
    pub term: u64,
    /// It hears of the other by then.
    pub until: Instant,
}

/// A round of telling other shards which edges have ended (R6).
pub struct Delivery {
    /// Which.
    pub round: u64,
    /// Shards that have not answered, with what they were told.
    pub open: BTreeMap<usize, Vec<u64>>,
    /// What has become of the others.
    pub told: Delivered,
}

/// One shard.
pub struct Shard {
    /// What has been applied.
    pub state: ShardState,
    /// Index of the last applied entry.
    pub index: u64,
    /// Of the leader, or of the next.
    pub term: u64,
    /// The head that leads; nobody during an election.
    pub leader: Option<usize>,
    /// In order.
    pub log: VecDeque<Entry>,
    /// The leader's.
    pub holdings: Holdings,
    /// As the leader's replica of shard 0 has them.
    pub members: Rc<Members>,
    /// The leader's.
    pub watcher: Watcher,
    /// A look at the silent is scheduled.
    pub watching: bool,
    /// At the leader.
    pub parked: Vec<Parked>,
    /// The questions are to be looked at again.
    pub waking: bool,
    /// A leader that was.
    pub deposed: Option<Deposed>,
    /// Deaths that are on their way into the log.
    pub fencing: BTreeSet<u64>,
    /// An entry that works off what waits is under way.
    pub sweeping: bool,
    /// Ends of edges that are being told.
    pub delivery: Option<Delivery>,
    /// Number of the last round of telling.
    pub rounds: u64,
    /// Entries that may wait.
    pub queue_max: usize,
    /// Entries take so much longer to commit until then.
    pub slow: (Instant, u64),
}

impl Shard {
    /// An empty shard.
    pub fn new(number: usize, hot_bytes: usize) -> Self {
        let cold = cold::open_one(Arc::new(SimDisk::new(number as u64)), number as u32);
        let mut state = ShardState::new(number as u32, cold.expect("a simulated disk has room"));
        state.set_hot_limit(hot_bytes);
        Shard {
            state,
            index: 0,
            term: 1,
            leader: None,
            log: VecDeque::new(),
            holdings: Holdings::default(),
            members: Rc::new(Members::default()),
            watcher: Watcher::new(SILENT_AFTER),
            watching: false,
            parked: Vec::new(),
            waking: false,
            deposed: None,
            fencing: BTreeSet::new(),
            sweeping: false,
            delivery: None,
            rounds: 0,
            queue_max: usize::MAX,
            slow: (Instant::default(), 0),
        }
    }

    /// Where its leader is.
    pub fn place(&self) -> Option<Place> {
        self.leader.map(Place::Head)
    }
}
