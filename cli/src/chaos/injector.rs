//! Faults at their moments, each healed when its time is over, all when the run is.

use crate::chaos::fault::{Fault, Outcome};
use crate::chaos::hands::{Hands, Healing};
use crate::chaos::work::Shared;
use indicatif::ProgressBar;
use mobula_chaos::Planned;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Pause between looks at the time.
const TICK: Duration = Duration::from_millis(5);

/// Something that is to be healed.
struct Open {
    /// Which of the faults.
    fault: usize,
    due: Instant,
    healing: Healing,
}

/// Strikes as planned, until `ends`; then heals what is open. What happened.
///
/// # Errors
/// Something cannot be healed, or a daemon ended that nobody struck.
pub fn run(
    hands: &mut Hands<'_>,
    plan: Vec<Planned>,
    (began, ends): (Instant, Duration),
    shared: &Shared,
    bar: &ProgressBar,
) -> Result<Vec<Fault>, String> {
    let (mut faults, mut open): (Vec<Fault>, Vec<Open>) = (Vec::new(), Vec::new());
    // Whatever becomes of this, the workload must not wait for it.
    let _calm = Calm(shared);
    let mut plan = plan.into_iter().peekable();
    let mut healed = Ok(());
    while healed.is_ok() && began.elapsed() < ends && !shared.over.load(Ordering::SeqCst) {
        healed = heal(hands, &mut faults, &mut open, began, |open| open.due <= Instant::now());
        while let Some(planned) = plan.next_if(|planned| planned.at() <= began.elapsed()) {
            let landed = hands.strike(&planned);
            bar.set_message(format!("{}: {}", landed.fault.kind, landed.fault.text));
            if let Some((lasts, healing)) = landed.healing {
                open.push(Open { fault: faults.len(), due: Instant::now() + lasts, healing });
            }
            faults.push(landed.fault);
        }
        bar.set_position(began.elapsed().as_secs());
        std::thread::sleep(TICK);
    }
    let rest = heal(hands, &mut faults, &mut open, began, |_| true);
    healed.and(rest).map(|()| faults)
}

/// Once this is dropped no more faults come.
struct Calm<'a>(&'a Shared);

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.0.calm.store(true, Ordering::SeqCst);
    }
}

/// Heals all that is due, also when one of them does not heal; the first that did not.
fn heal(
    hands: &mut Hands<'_>,
    faults: &mut [Fault],
    open: &mut Vec<Open>,
    began: Instant,
    is_due: impl Fn(&Open) -> bool,
) -> Result<(), String> {
    let mut healed = Ok(());
    for due in open.extract_if(.., |open| is_due(open)) {
        let fault = &mut faults[due.fault];
        let this = hands.heal(due.healing).map_err(|why| format!("{} does not heal: {why}", fault.kind));
        fault.lasted_s = began.elapsed().as_secs_f64() - fault.at_s;
        healed = healed.and(this);
    }
    healed
}

/// How many were installed, skipped, and of unknown outcome.
pub fn tally(faults: &[Fault]) -> (usize, usize, usize) {
    let of = |outcome| faults.iter().filter(|fault| fault.outcome == outcome).count();
    (of(Outcome::Installed), of(Outcome::Skipped), of(Outcome::Indeterminate))
}
