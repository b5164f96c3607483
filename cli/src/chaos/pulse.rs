//! When a workload was answered: its throughput over time, and the longest time in which something waited and nothing
//! came.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Answers are counted by parts of a run that are so long.
pub const PART: Duration = Duration::from_millis(250);

/// Answers of a run.
pub struct Pulse {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Answers in each part.
    parts: Vec<u64>,
    waiting: u64,
    /// The last answer, or when something began to wait, from the beginning of the run.
    since: Option<Duration>,
    longest: Option<Gap>,
}

impl State {
    fn asked(&mut self, many: u64, now: Duration) {
        if self.waiting == 0 {
            self.since = Some(now);
        }
        self.waiting += many;
    }

    fn answered(&mut self, many: u64, now: Duration) {
        let part = (now.as_nanos() / PART.as_nanos()) as usize;
        if self.parts.len() <= part {
            self.parts.resize(part + 1, 0);
        }
        self.parts[part] += many;
        self.waiting = self.waiting.saturating_sub(many);
        let Some(since) = self.since.replace(now) else { return };
        let gap = Gap { from: since, lasted: now.saturating_sub(since) };
        if self.longest.is_none_or(|longest| longest.lasted < gap.lasted) {
            self.longest = Some(gap);
        }
        if self.waiting == 0 {
            self.since = None;
        }
    }
}

/// A time without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// When it began, from the beginning of the run.
    pub from: Duration,
    /// How long it was.
    pub lasted: Duration,
}

impl Pulse {
    /// Of a run that begins now.
    pub fn begin() -> Self {
        Pulse { began: Instant::now(), state: Mutex::new(State::default()) }
    }

    /// When the run began.
    pub fn began(&self) -> Instant {
        self.began
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere is reported there.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many more answers are waited for.
    pub fn asked(&self, many: u64) {
        self.state().asked(many, self.began.elapsed());
    }

    /// So many answers came.
    pub fn answered(&self, many: u64) {
        self.state().answered(many, self.began.elapsed());
    }

    /// Nobody waits any more, and what has not come never will.
    pub fn over(&self) {
        let state = &mut *self.state();
        (state.waiting, state.since) = (0, None);
    }

    /// Answers in each part so far.
    pub fn parts(&self) -> Vec<u64> {
        self.state().parts.clone()
    }

    /// The longest time in which something waited and nothing came.
    pub fn longest(&self) -> Option<Gap> {
        self.state().longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_waits_stalls_and_the_longest_time_counts() {
        let ms = Duration::from_millis;
        let mut state = State::default();
        state.asked(2, ms(10));
        state.answered(1, ms(30));
        state.answered(1, ms(60));
        // Nothing waits for a while.
        state.asked(1, ms(900));
        state.answered(1, ms(910));
        let longest = state.longest.expect("there were some");
        assert_eq!((longest.from, longest.lasted), (ms(30), ms(30)));
        state.asked(3, ms(1_000));
        state.answered(1, ms(1_200));
        let longest = state.longest.expect("there were some");
        assert_eq!((longest.from, longest.lasted), (ms(1_000), ms(200)));
        assert_eq!((state.parts, state.waiting), (vec![2, 0, 0, 1, 1], 2));
    }
}
