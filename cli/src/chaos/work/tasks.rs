//! Short tasks whose answers are known, always so many in flight.

use super::{BOUND, Done, Order};
use crate::chaos::judge::{Class, Judged};
use mobula::{Client, ConnectOptions, Error, ObjectRef};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Tasks in flight.
pub const IN_FLIGHT: usize = 200;

/// A short task whose answer is known.
#[mobula::remote]
fn work(number: u64) -> u64 {
    let until = Instant::now() + Duration::from_millis(1);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    answer(number)
}

fn answer(number: u64) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17)
}

/// What came of the tasks.
#[derive(Default)]
pub struct Kept {
    /// Answered.
    pub tasks: u64,
    /// Answered with something else.
    pub wrong: u64,
    /// Failed, and why.
    pub failed: Vec<String>,
    /// The driver's node is gone: nothing more was submitted.
    pub lost: Option<String>,
    /// Had no answer within the time given.
    pub unanswered: Vec<String>,
}

/// Keeps short tasks in flight until told to stop, and checks every answer, each of which is waited for no longer than
/// `patience`. `asked` and `answered` hear of each.
pub fn keep_busy(
    driver: &Client,
    patience: Duration,
    stop: impl Fn() -> bool,
    asked: impl Fn(),
    answered: impl Fn(),
) -> Kept {
    let mut kept = Kept::default();
    let mut in_flight: VecDeque<(u64, ObjectRef<u64>)> = VecDeque::new();
    let mut number = 0;
    loop {
        while in_flight.len() < IN_FLIGHT && !stop() {
            in_flight.push_back((number, driver.submit(work::task(number))));
            asked();
            number += 1;
        }
        let Some((number, reference)) = in_flight.pop_front() else { return kept };
        kept.tasks += 1;
        match reference.get_timeout(patience) {
            Ok(found) if found == answer(number) => {}
            Ok(_) => kept.wrong += 1,
            Err(Error::Timeout(_)) => kept.unanswered.push(format!("task {number}")),
            Err(Error::Disconnected(why)) => {
                kept.lost = Some(why);
                return kept;
            }
            Err(error) => kept.failed.push(format!("task {number}: {error}")),
        }
        answered();
    }
}

/// Connects a driver to node 1 of a cluster of this process.
///
/// # Errors
/// It has no socket, or does not take drivers.
pub fn connect(cluster: &crate::cluster::LocalCluster, job_name: &str) -> Result<Client, String> {
    let socket: PathBuf = cluster.node(1).and_then(|n| n.socket).ok_or("node 1 has no socket for drivers")?;
    let (job_name, args) = (job_name.to_owned(), Vec::new());
    Client::connect(ConnectOptions { socket, job_name, args, ..ConnectOptions::default() })
        .map_err(|e| e.to_string())
}

/// What a run says whose driver's node went: nobody can judge it.
pub fn lost_node(why: &str) -> String {
    format!("the driver lost its node, which nothing kills: {why}")
}

/// Runs it.
///
/// # Errors
/// The driver cannot connect, or its node is gone.
pub fn run(order: &Order<'_>) -> Result<Done, String> {
    let driver = connect(order.cluster, "chaos: tasks")?;
    let until = order.pulse.began() + order.ends;
    // Faults may last longer than tasks are begun; then the bound counts from their end, so here it is longer.
    let patience = order.ends + BOUND;
    let stop = || Instant::now() >= until && order.shared.is_calm();
    let kept = keep_busy(&driver, patience, stop, || order.pulse.asked(1), || order.pulse.answered(1));
    order.pulse.over();
    if let Some(why) = kept.lost {
        return Err(lost_node(&why));
    }
    let lethal = order.shared.lethal.load(Ordering::SeqCst);
    let mut judged = vec![
        Judged::of("value", "G3, S9", Class::Safety, kept.tasks)
            .objecting((kept.wrong > 0).then(|| format!("{} answers are wrong", kept.wrong))),
        // A task may be repeated three times: without four deaths none fails.
        Judged::of("typed-cause", "S24", Class::Safety, kept.tasks)
            .objecting(kept.failed.first().filter(|_| lethal < 4).cloned()),
        Judged::of("liveness", "G5, V2", Class::Liveness, kept.tasks).objecting(
            kept.unanswered.first().map(|first| format!("no answer within {patience:?}: {first}")),
        ),
    ];
    let ended = driver.end(true).err().map(|error| format!("the job cannot end: {error}"));
    judged.push(Judged::of("end", "G5", Class::Liveness, 1).objecting(ended));
    let failures = kept.failed.len() as u64;
    let values = kept.tasks - failures - kept.unanswered.len() as u64;
    Ok(Done { submitted: kept.tasks, values, failures, judged, ..Done::default() })
}
