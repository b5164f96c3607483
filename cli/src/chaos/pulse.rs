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
    /// The last answer, or when something began to wait.
    since: Option<Instant>,
    longest: Option<Gap>,
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
        let state = &mut *self.state();
        if state.waiting == 0 {
            state.since = Some(Instant::now());
        }
        state.waiting += many;
    }

    /// So many answers came.
    pub fn answered(&self, many: u64) {
        let now = Instant::now();
        let state = &mut *self.state();
        let part = (now.duration_since(self.began).as_nanos() / PART.as_nanos()) as usize;
        if state.parts.len() <= part {
            state.parts.resize(part + 1, 0);
        }
        state.parts[part] += many;
        state.waiting = state.waiting.saturating_sub(many);
        let Some(since) = state.since.replace(now) else { return };
        let (from, lasted) = (since.duration_since(self.began), now.duration_since(since));
        if state.longest.is_none_or(|longest| longest.lasted < lasted) {
            state.longest = Some(Gap { from, lasted });
        }
        if state.waiting == 0 {
            state.since = None;
        }
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
    fn only_what_waits_stalls() {
        let pulse = Pulse::begin();
        pulse.asked(2);
        pulse.answered(2);
        let before = pulse.longest().expect("one gap").lasted;
        std::thread::sleep(Duration::from_millis(30));
        pulse.asked(1);
        pulse.answered(1);
        let idle = pulse.longest().expect("one gap").lasted;
        assert!(idle < Duration::from_millis(30) || before >= Duration::from_millis(30), "{idle:?}");
        pulse.asked(1);
        std::thread::sleep(Duration::from_millis(30));
        pulse.answered(1);
        assert!(pulse.longest().expect("one gap").lasted >= Duration::from_millis(30));
        assert_eq!(pulse.parts().iter().sum::<u64>(), 4);
    }
}
