//! What happened, event by event.

use mobula_base::ids::hash64;
use std::cell::RefCell;
use std::time::Duration;

thread_local! {
    // One process simulates one seed on one thread: this is that simulation's log.
    static EVENTS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Notes an event at the current simulated time.
pub fn note(what: impl AsRef<str>) {
    let at = turmoil::sim_elapsed().unwrap_or_default();
    note_at(at, what);
}

/// Notes an event from outside the simulated hosts.
pub fn note_at(at: Duration, what: impl AsRef<str>) {
    EVENTS.with_borrow_mut(|events| events.push(format!("{:>9.3} {}", at.as_secs_f64(), what.as_ref())));
}

/// All events so far.
pub fn events() -> Vec<String> {
    EVENTS.with_borrow(Clone::clone)
}

/// A fingerprint of all events and their order.
pub fn fingerprint() -> u64 {
    EVENTS.with_borrow(|events| {
        let parts: Vec<&[u8]> = events.iter().map(|e| e.as_bytes()).collect();
        hash64(&parts)
    })
}
