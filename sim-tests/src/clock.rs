//! The simulation's thread sees no wall clock.
//!
//! Below the product's own seam, libraries read the process's clock: h2 forgets a stream that was
//! reset one second of *wall* time after the reset, so a busy machine changed what a seed does. This
//! program therefore answers `clock_gettime` itself: on the simulating thread, from [`freeze`] to
//! [`thaw`], with simulated time; everywhere else with the kernel's.

use rustix::time::{ClockId, clock_gettime as kernel};
use std::cell::Cell;
use std::ffi::{c_int, c_long};
use std::time::Duration;
use turmoil::Sim;

thread_local! {
    /// The time since the simulation began, where one runs.
    static SIMULATED: Cell<Option<Duration>> = const { Cell::new(None) };
}

/// Any start will do, if it is always the same; large enough that nobody subtracts below zero.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);

/// C's `struct timespec` of 64-bit Linux.
#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

/// Stops this thread's clock at the beginning of a simulation.
pub fn freeze() {
    SIMULATED.set(Some(Duration::ZERO));
}

/// One step of the simulation, as of its own time.
///
/// # Errors
/// As `Sim::step`.
pub fn step(sim: &mut Sim<'_>) -> turmoil::Result<bool> {
    SIMULATED.set(Some(sim.elapsed()));
    sim.step()
}

/// Gives this thread the kernel's clock back.
pub fn thaw() {
    SIMULATED.set(None);
}

/// Stands before the C library's function of the same name, for everything in this program.
///
/// # Safety
/// `out` is a place for one timespec.
// SAFETY: no other crate of this program defines this symbol, and the signature is that of POSIX.
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, out: *mut Timespec) -> c_int {
    let known = match clock {
        0 => ClockId::Realtime,
        1 => ClockId::Monotonic,
        2 => ClockId::ProcessCPUTime,
        3 => ClockId::ThreadCPUTime,
        5 => ClockId::RealtimeCoarse,
        6 => ClockId::MonotonicCoarse,
        7 => ClockId::Boottime,
        _ => return -1,
    };
    let time = match SIMULATED.try_with(Cell::get).ok().flatten() {
        Some(since) => {
            let now = EPOCH + since;
            Timespec { seconds: now.as_secs() as i64, nanoseconds: now.subsec_nanos().into() }
        }
        None => {
            let now = kernel(known);
            Timespec { seconds: now.tv_sec, nanoseconds: now.tv_nsec }
        }
    };
    // SAFETY: callers of `clock_gettime` pass a place for one timespec.
    #[allow(unsafe_code)]
    unsafe {
        out.write(time);
    }
    0
}
