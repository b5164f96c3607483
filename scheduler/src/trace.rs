//! What workers of this node have run, and when: the last of it, for people who watch. Nothing is decided on it.
//!
//! Attempts of microseconds would fill any list at once, so neighbours of one function are told as one.

use crate::execute::Run;
use crate::types::ClientId;
use mobula_base::{Instant, JobId, TaskId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Spans that are kept; the oldest goes when there is another.
pub const SPANS_MAX: usize = 16 * 1024;
/// A worker's attempts of one function that follow each other within this are told as one,
const GAP: Duration = Duration::from_millis(1);
/// until that is so long.
const MERGED_MAX: Duration = Duration::from_millis(10);

/// Attempts of one function that one worker ran, one after the other: mostly one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The last of them.
    pub task: TaskId,
    /// Its attempt.
    pub attempt: u32,
    /// Its job.
    pub job: JobId,
    /// Its function, as the job numbers them.
    pub function: u64,
    /// Where it ran.
    pub worker: ClientId,
    /// When the first of them began.
    pub began: Instant,
    /// When the last of them ended.
    pub ended: Instant,
    /// How many there are.
    pub count: u32,
    /// All of them failed; else none did.
    pub failed: bool,
}

impl Span {
    /// Whether they had run before: later attempts.
    pub fn is_again(&self) -> bool {
        self.attempt > 1
    }

    fn takes(&self, next: &Span) -> bool {
        self.function == next.function
            && self.job == next.job
            && self.failed == next.failed
            && self.is_again() == next.is_again()
            && next.began.since(self.ended) <= GAP
            && next.ended.since(self.began) <= MERGED_MAX
    }
}

/// What ended on this node so far, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Attempts that workers ended.
    pub ended: u64,
    /// Of these, the later ones.
    pub again: u64,
    /// Of these, those that failed.
    pub failed: u64,
}

/// The last spans, and how many attempts there were in all.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    spans: VecDeque<Span>,
    /// The last of each worker: another may join it.
    open: BTreeMap<ClientId, Span>,
    pub totals: Totals,
}

impl Trace {
    /// An attempt that a worker had has ended.
    pub fn ended(&mut self, task: TaskId, run: &Run, failed: bool, ran_ns: u64, now: Instant) {
        let Some(worker) = run.given else { return };
        let began = match ran_ns {
            0 => run.began,
            // What is told in one message ended one after the other.
            ran => Instant(now.0.saturating_sub(ran)),
        };
        let (job, function) = (JobId(run.spec.job), run.spec.function);
        let span =
            Span { task, attempt: run.attempt, job, function, worker, began, ended: now, count: 1, failed };
        self.totals.ended += 1;
        self.totals.again += u64::from(span.is_again());
        self.totals.failed += u64::from(failed);
        match self.open.get_mut(&worker) {
            Some(open) if open.takes(&span) => {
                (open.task, open.attempt, open.ended) = (span.task, span.attempt, span.ended);
                open.count += 1;
            }
            Some(open) => {
                let whole = std::mem::replace(open, span);
                self.push(whole);
            }
            None => {
                self.open.insert(worker, span);
            }
        }
    }

    /// Its worker is gone.
    pub fn close(&mut self, worker: ClientId) {
        if let Some(whole) = self.open.remove(&worker) {
            self.push(whole);
        }
    }

    fn push(&mut self, span: Span) {
        if self.spans.len() == SPANS_MAX {
            self.spans.pop_front();
        }
        self.spans.push_back(span);
    }

    /// The latest up to `limit` that ended at `since` or later, in no order, and whether there were more.
    pub fn since(&self, since: Instant, limit: usize) -> (Vec<Span>, bool) {
        let mut late = self.open.values().chain(self.spans.iter().rev()).filter(|span| span.ended >= since);
        let spans: Vec<Span> = late.by_ref().take(limit).cloned().collect();
        (spans, late.next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(worker: u64, function: u64, began: u64, ended: u64) -> Span {
        Span {
            task: TaskId::default(),
            attempt: 1,
            job: JobId(1),
            function,
            worker,
            began: Instant(began),
            ended: Instant(ended),
            count: 1,
            failed: false,
        }
    }

    #[test]
    fn neighbours_of_one_kind_are_one() {
        let first = span(1, 7, 0, 100_000);
        assert!(first.takes(&span(1, 7, 100_500, 200_000)));
        assert!(!first.takes(&span(1, 8, 100_500, 200_000)), "another function");
        assert!(!first.takes(&span(1, 7, 2_000_000, 2_100_000)), "after a pause");
        assert!(!first.takes(&span(1, 7, 100_500, 10_000_001)), "it would be long");
        assert!(!first.takes(&Span { failed: true, ..span(1, 7, 100_500, 200_000) }));
        assert!(!first.takes(&Span { attempt: 2, ..span(1, 7, 100_500, 200_000) }));
    }

    #[test]
    fn the_oldest_goes_and_the_latest_are_told_first() {
        let mut trace = Trace::default();
        for n in 0..SPANS_MAX as u64 + 5 {
            trace.push(span(1, n, n, n));
        }
        let (all, more) = trace.since(Instant(0), SPANS_MAX + 1);
        assert!(all.len() == SPANS_MAX && !more);
        let (late, more) = trace.since(Instant(10), 2);
        assert!(
            more && late.iter().map(|span| span.function).eq([SPANS_MAX as u64 + 4, SPANS_MAX as u64 + 3])
        );
        assert!(trace.since(Instant(u64::MAX), 10).0.is_empty());
    }
}
