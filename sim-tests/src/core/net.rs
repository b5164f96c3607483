//! The simulated network: how long messages take, who is cut off from whom, what is lost.

use super::dice::Dice;
use mobula_base::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// Somewhere that messages come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A machine with a node daemon.
    Node(usize),
    /// A head of the control store.
    Head(usize),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives, and so does its answer.
    Well,
    /// It never arrives.
    RequestLost,
    /// It is done, but nobody hears of it.
    ResponseLost,
    /// The caller is told of an error while it is still on its way.
    InFlight,
    /// It arrives twice.
    Twice,
}

/// The network.
pub struct Net {
    dice: Dice,
    latency_us: (u64, u64),
    cut: BTreeMap<(Place, Place), Instant>,
    slow: BTreeMap<Place, (Instant, Duration)>,
    /// Requests fare badly until then, so many in a thousand of each fate.
    rpc: (Instant, [u64; 4]),
}

impl Net {
    /// A network without trouble.
    pub fn new(seed: u64, latency_us: (u64, u64)) -> Self {
        Net {
            dice: Dice::new(seed, "net"),
            latency_us,
            cut: BTreeMap::new(),
            slow: BTreeMap::new(),
            rpc: (Instant::default(), [0; 4]),
        }
    }

    /// Nothing from `from` reaches `to` until then.
    pub fn cut(&mut self, from: Place, to: Place, until: Instant) {
        let entry = self.cut.entry((from, to)).or_default();
        *entry = until.max(*entry);
    }

    /// Messages from and to a place take up to so much longer until then.
    pub fn slow_down(&mut self, place: Place, until: Instant, by: Duration) {
        self.slow.insert(place, (until, by));
    }

    /// Requests fare badly until then: so many in a thousand are lost, unanswered, in flight, doubled.
    pub fn bad_requests(&mut self, until: Instant, permille: [u64; 4]) {
        self.rpc = (until, permille);
    }

    /// All is well again.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.slow.clear();
        self.rpc = (Instant::default(), [0; 4]);
    }

    /// Whether messages from `from` reach `to`.
    pub fn reaches(&self, from: Place, to: Place, now: Instant) -> bool {
        self.cut.is_empty() || self.cut.get(&(from, to)).is_none_or(|until| *until <= now)
    }

    /// Whether both hear each other.
    pub fn joined(&self, a: Place, b: Place, now: Instant) -> bool {
        self.reaches(a, b, now) && self.reaches(b, a, now)
    }

    /// How long a message takes.
    pub fn latency(&mut self, from: Place, to: Place, now: Instant) -> Duration {
        let mut takes = self.dice.us(self.latency_us.0, self.latency_us.1);
        if !self.slow.is_empty() {
            for place in [from, to] {
                if let Some((_, by)) = self.slow.get(&place).filter(|(until, _)| *until > now) {
                    takes += Duration::from_nanos(self.dice.below(by.as_nanos() as u64));
                }
            }
        }
        takes
    }

    /// What becomes of the next request.
    pub fn fate(&mut self, now: Instant) -> Fate {
        if self.rpc.0 <= now {
            return Fate::Well;
        }
        let mut drawn = self.dice.below(1000);
        let fates = [Fate::RequestLost, Fate::ResponseLost, Fate::InFlight, Fate::Twice];
        for (fate, permille) in fates.into_iter().zip(self.rpc.1) {
            if drawn < permille {
                return fate;
            }
            drawn -= permille;
        }
        Fate::Well
    }

    /// How long a caller waits for what never comes.
    pub fn patience(&mut self) -> Duration {
        self.dice.ms(250, 1_500)
    }

    /// How long after the first one a doubled message comes.
    pub fn lateness(&mut self) -> Duration {
        Duration::from_micros(self.dice.log_uniform(1_000, 3_000_000))
    }
}
