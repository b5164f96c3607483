//! What all code of a run shares: the program, what it must come to, and who judges. Tasks are plain
//! functions without a way to be handed it, so it stands beside them: one process simulates one seed on
//! one thread.

use super::cause::Cause;
use super::local::Worker;
use mobula_base::{Instant, TaskId};
use mobula_sim_tests::core::judge::Judges;
use mobula_sim_tests::core::program::{Oracle, Style};
use mobula_sim_tests::core::sometimes::Sometimes;
use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// All of it.
pub struct State {
    /// What the tasks are like.
    pub style: Style,
    /// What they must come to.
    pub oracle: Oracle,
    /// The judges that both layers have.
    pub judges: Judges,
    /// What fails fails for a reason.
    pub cause: Cause,
    /// What was reached.
    pub sometimes: Sometimes,
    /// Worker processes that live, by number.
    pub workers: BTreeMap<u64, Worker>,
    /// The number of the last one.
    pub next_worker: u64,
    /// Executions of each task.
    pub executions: BTreeMap<TaskId, u32>,
    /// A value was not what it is said to be.
    pub torn: Option<String>,
}

impl State {
    /// Nothing has happened.
    pub fn new(style: Style, oracle: Oracle) -> Self {
        State {
            style,
            oracle,
            judges: Judges::of_replicas(),
            cause: Cause::default(),
            sometimes: Sometimes::default(),
            workers: BTreeMap::new(),
            next_worker: 0,
            executions: BTreeMap::new(),
            torn: None,
        }
    }
}

/// Begins a run.
pub fn set(state: State) {
    STATE.with_borrow_mut(|place| *place = Some(state));
}

/// Looks at it or changes it.
///
/// # Panics
/// There is no run, or `f` asks for it again.
pub fn with<R>(f: impl FnOnce(&mut State) -> R) -> R {
    STATE.with_borrow_mut(|state| f(state.as_mut().expect("a run has begun")))
}

/// Counts a point.
pub fn hit(point: &'static str) {
    with(|state| state.sometimes.hit(point));
}

/// The simulated time, as judges have it; inside a simulated host.
pub fn now() -> Instant {
    Instant(turmoil::sim_elapsed().unwrap_or_default().as_nanos() as u64)
}
