//! Who holds up a shard that has a new leader, and what becomes of it (R9). Pure: time is handed in.
//!
//! A shard is settled when every live member has re-reported to the leader of this term. One that does
//! not would hold it up for ever; one that is taken for silent too early would lose what it has. So:
//!
//! 1. [`Watcher`], on the leader of each shard: who has been silent for two seconds of this term. A
//!    watcher that was late itself could not listen, and starts all timers anew.
//! 2. [`Court`], on the leader of shard 0, which is told: the first leader that cannot hear a member is
//!    to hand its office over, since another head may reach what it cannot. When that one cannot
//!    either, or there is nobody to hand over to, the member is dead. One at a time: a cause that is
//!    common to many is more likely here than there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A member that has not reported this long into a term counts as silent, unless told otherwise.
pub const SILENT_AFTER: Duration = Duration::from_secs(2);
/// A look that comes this much too late starts all timers anew.
const LATE: Duration = Duration::from_millis(500);
/// What a leader has said of a member counts for this long.
const REMEMBERED: Duration = Duration::from_secs(30);
/// After a death the next one is decided no sooner: what died may have been what slowed the others.
const ONE_AT_A_TIME: Duration = Duration::from_secs(2);

/// The timers of one shard's leader.
#[derive(Clone, Debug)]
pub struct Watcher {
    after: Duration,
    term: u64,
    looked: Option<Duration>,
    since: BTreeMap<u64, Duration>,
}

impl Watcher {
    /// No timers yet; who makes no progress for `after` counts as silent.
    pub fn new(after: Duration) -> Self {
        Watcher { after, term: 0, looked: None, since: BTreeMap::new() }
    }

    /// One look, at `now`, meant to come `every` so often: the member that has been silent longest, and
    /// long enough. `live` are the members, `reported` those who have, `heard` when each last said anything.
    pub fn look(
        &mut self,
        now: Duration,
        every: Duration,
        term: u64,
        live: impl Iterator<Item = u64>,
        reported: &BTreeSet<u64>,
        heard: &BTreeMap<u64, Duration>,
    ) -> Option<u64> {
        let late = self.looked.is_none_or(|looked| now.saturating_sub(looked) > every + LATE);
        if late || self.term != term {
            self.since.clear();
        }
        (self.term, self.looked) = (term, Some(now));
        let open: BTreeSet<u64> = live.filter(|member| !reported.contains(member)).collect();
        self.since.retain(|member, _| open.contains(member));
        for member in open {
            let since = self.since.entry(member).or_insert(now);
            *since = heard.get(&member).copied().unwrap_or(*since).max(*since);
        }
        let silent = self.since.iter().filter(|(_, since)| now.saturating_sub(**since) >= self.after);
        silent.min_by_key(|(_, since)| **since).map(|(member, _)| *member)
    }
}

/// A leader cannot hear a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accusation {
    /// Of which shard.
    pub shard: u32,
    /// Who is silent.
    pub member: u64,
    /// The head that leads, and says so.
    pub by: u64,
    /// Whether there is a head that could lead instead.
    pub has_heir: bool,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing now.
    Wait,
    /// The accuser lets another head lead.
    HandOver,
    /// The member is declared dead. These heads could not hear it.
    Dead(Vec<u64>),
}

/// What the leader of shard 0 has been told, in its term.
#[derive(Clone, Debug, Default)]
pub struct Court {
    told: BTreeMap<(u32, u64), BTreeMap<u64, Duration>>,
    last_death: Option<Duration>,
}

impl Court {
    /// Decides.
    pub fn judge(&mut self, now: Duration, accusation: &Accusation, is_live: bool) -> Verdict {
        self.told.retain(|_, by| {
            by.retain(|_, at| now.saturating_sub(*at) < REMEMBERED);
            !by.is_empty()
        });
        if !is_live {
            return Verdict::Wait;
        }
        let told = self.told.entry((accusation.shard, accusation.member)).or_default();
        told.insert(accusation.by, now);
        if told.len() < 2 && accusation.has_heir {
            return Verdict::HandOver;
        }
        if self.last_death.is_some_and(|at| now.saturating_sub(at) < ONE_AT_A_TIME) {
            return Verdict::Wait;
        }
        self.last_death = Some(now);
        let by = told.keys().copied().collect();
        self.told.retain(|(_, member), _| *member != accusation.member);
        Verdict::Dead(by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_millis(100);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Looks every 100 ms from `from` to `to`; the first who counted as silent, and when.
    fn watch(watcher: &mut Watcher, from: u64, to: u64, term: u64, reported: &[u64]) -> Option<(u64, u64)> {
        let reported = reported.iter().copied().collect();
        (from..=to).step_by(100).find_map(|at| {
            let silent =
                watcher.look(ms(at), EVERY, term, [1, 2, 3].into_iter(), &reported, &BTreeMap::new());
            silent.map(|member| (member, at))
        })
    }

    #[test]
    fn whoever_does_not_report_counts_as_silent_after_two_seconds_of_the_term() {
        let mut watcher = Watcher::new(SILENT_AFTER);
        assert_eq!(watch(&mut watcher, 0, 10_000, 1, &[1, 2, 3]), None);
        let mut watcher = Watcher::new(SILENT_AFTER);
        assert_eq!(watch(&mut watcher, 0, 1900, 1, &[1, 3]), None);
        assert_eq!(watch(&mut watcher, 2000, 2000, 1, &[1, 3]), Some((2, 2000)));
        assert_eq!(watch(&mut watcher, 2100, 4000, 2, &[1, 3]), None, "a new term, new timers");
        assert_eq!(watch(&mut watcher, 4100, 4100, 2, &[1, 3]), Some((2, 4100)));
    }

    #[test]
    fn progress_without_a_whole_report_is_not_silence() {
        let mut watcher = Watcher::new(SILENT_AFTER);
        for at in (0..10_000).step_by(100) {
            let heard = BTreeMap::from([(1, ms(at / 1500 * 1500))]);
            let silent = watcher.look(ms(at), EVERY, 1, [1].into_iter(), &BTreeSet::new(), &heard);
            assert_eq!(silent, None, "{at}");
        }
    }

    #[test]
    fn a_member_that_comes_later_has_its_own_two_seconds() {
        let mut watcher = Watcher::new(SILENT_AFTER);
        let mut look = |at, live: &[u64]| {
            watcher.look(ms(at), EVERY, 1, live.iter().copied(), &BTreeSet::from([1]), &BTreeMap::new())
        };
        for at in (0..5000).step_by(100) {
            assert_eq!(look(at, &[1]), None);
        }
        for at in (5000..7000).step_by(100) {
            assert_eq!(look(at, &[1, 2]), None);
        }
        assert_eq!(look(7000, &[1, 2]), Some(2));
        assert_eq!(look(7100, &[1]), None, "it has been declared dead");
    }

    #[test]
    fn a_watcher_that_was_late_itself_starts_anew() {
        let mut watcher = Watcher::new(SILENT_AFTER);
        assert_eq!(watch(&mut watcher, 0, 1000, 1, &[]), None);
        // It slept for five seconds: nobody could be heard.
        assert_eq!(watch(&mut watcher, 6000, 7900, 1, &[]), None);
        assert_eq!(
            watch(&mut watcher, 8000, 8000, 1, &[]),
            Some((1, 8000)),
            "one of them, and it is settled next"
        );
    }

    fn by(head: u64, member: u64, has_heir: bool) -> Accusation {
        Accusation { shard: 3, member, by: head, has_heir }
    }

    #[test]
    fn first_another_head_leads_then_it_is_dead() {
        let mut court = Court::default();
        assert_eq!(court.judge(ms(0), &by(1, 5, true), true), Verdict::HandOver);
        assert_eq!(
            court.judge(ms(100), &by(1, 5, true), true),
            Verdict::HandOver,
            "one voice, however often"
        );
        assert_eq!(court.judge(ms(2200), &by(2, 5, true), true), Verdict::Dead(vec![1, 2]));
        assert_eq!(court.judge(ms(9000), &by(2, 5, true), false), Verdict::Wait, "it is");
    }

    #[test]
    fn another_shard_s_leader_is_no_second_voice() {
        let mut court = Court::default();
        assert_eq!(court.judge(ms(0), &by(1, 5, true), true), Verdict::HandOver);
        let other = Accusation { shard: 2, ..by(2, 5, true) };
        assert_eq!(court.judge(ms(0), &other, true), Verdict::HandOver);
    }

    #[test]
    fn where_nobody_could_lead_instead_one_voice_is_enough() {
        let mut court = Court::default();
        assert_eq!(court.judge(ms(0), &by(1, 5, false), true), Verdict::Dead(vec![1]));
    }

    #[test]
    fn slowness_kills_one_at_a_time() {
        let mut court = Court::default();
        assert_eq!(court.judge(ms(0), &by(1, 5, false), true), Verdict::Dead(vec![1]));
        assert_eq!(court.judge(ms(100), &by(1, 6, false), true), Verdict::Wait);
        assert_eq!(court.judge(ms(1900), &by(1, 7, false), true), Verdict::Wait);
        assert_eq!(court.judge(ms(2000), &by(1, 6, false), true), Verdict::Dead(vec![1]));
    }

    #[test]
    fn what_was_said_long_ago_does_not_count() {
        let mut court = Court::default();
        assert_eq!(court.judge(ms(0), &by(1, 5, true), true), Verdict::HandOver);
        assert_eq!(court.judge(ms(40_000), &by(2, 5, true), true), Verdict::HandOver);
    }
}
