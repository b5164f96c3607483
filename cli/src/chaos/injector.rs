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
    let mut plan = plan.into_iter().peekable();
    while began.elapsed() < ends && !shared.over.load(Ordering::SeqCst) {
        heal(hands, &mut faults, &mut open, began, |open| open.due <= Instant::now())?;
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
    heal(hands, &mut faults, &mut open, began, |_| true)?;
    shared.calm.store(true, Ordering::SeqCst);
    Ok(faults)
}

fn heal(
    hands: &mut Hands<'_>,
    faults: &mut [Fault],
    open: &mut Vec<Open>,
    began: Instant,
    is_due: impl Fn(&Open) -> bool,
) -> Result<(), String> {
    for due in open.extract_if(.., |open| is_due(open)) {
        let fault = &mut faults[due.fault];
        hands.heal(due.healing).map_err(|why| format!("{} does not heal: {why}", fault.kind))?;
        fault.lasted_s = began.elapsed().as_secs_f64() - fault.at_s;
    }
    Ok(())
}

/// How many were installed, skipped, and of unknown outcome.
pub fn tally(faults: &[Fault]) -> (usize, usize, usize) {
    let of = |outcome| faults.iter().filter(|fault| fault.outcome == outcome).count();
    (of(Outcome::Installed), of(Outcome::Skipped), of(Outcome::Indeterminate))
}
