//! Where objects are, by tables and reports together (R9).

use super::holdings::Holdings;
use super::locate::{Facts, Members};
use super::refs_tests::{Shard, a_put, done, edge, hold, next, put, release, submit, task};
use mobula_base::ObjectId;
use mobula_base::ids::FIRST_PUT_SLOT;
use mobula_proto as proto;
use proto::FailureKind;
use proto::located::Answer;
use proto::stream_item::Item;
use std::time::Duration;

/// A shard's leader, and the only node that lives, which has reported nothing yet.
struct Leader {
    shard: Shard,
    holdings: Holdings,
    node: u64,
}

impl Leader {
    fn of(node: u64) -> Self {
        Leader { shard: Shard::new(0, 1), holdings: Holdings::default(), node }
    }

    /// The node reports for the first time, and nothing.
    fn settles(&mut self) {
        self.hears(proto::HoldingRequest { full: true, ..Default::default() });
    }

    /// The node reports that it has an object no longer.
    fn hears_gone(&mut self, object: ObjectId) {
        let remove = vec![proto::object_bytes(object)];
        self.hears(proto::HoldingRequest { remove, ..Default::default() });
    }

    fn hears(&mut self, report: proto::HoldingRequest) {
        let report = proto::HoldingRequest { incarnation: self.node, term: 1, ..report };
        self.holdings.hear(&report, 1, &self.shard.state, Duration::ZERO);
    }

    /// What somebody else is told.
    fn answer(&self, object: ObjectId) -> Answer {
        let members = Members { live: [(self.node, String::new())].into(), ..Members::default() };
        Facts::new(&self.shard.state, &self.holdings, &members, 4).answer(object)
    }

    fn says_here(&self, object: ObjectId) -> bool {
        matches!(self.answer(object), Answer::Here(here) if here.holders[0].incarnation == self.node)
    }
}

#[test]
fn a_large_put_is_with_whoever_put_it_before_that_node_reports_its_copy() {
    let mut leader = Leader::of(3);
    let object = a_put(0);
    leader.shard.say(3, vec![put(object, &[])]);
    leader.settles();
    assert!(leader.says_here(object));
    leader.hears_gone(object);
    assert!(matches!(leader.answer(object), Answer::Failed(_)));
}

#[test]
fn a_large_put_that_its_node_let_go_of_is_there_before_that_node_reports_its_copy() {
    let mut leader = Leader::of(3);
    let (object, around) = (a_put(0), a_put(1));
    let named = edge(object, around, true);
    leader.shard.say(3, vec![named, put(around, &[object]), put(object, &[]), release(object)]);
    leader.settles();
    assert!(leader.says_here(object), "{:?}", leader.answer(object));
    leader.hears_gone(object);
    assert!(matches!(leader.answer(object), Answer::Failed(_)));
}

#[test]
fn a_copy_that_was_gone_and_is_made_again_is_there_before_it_is_reported() {
    let mut leader = Leader::of(90);
    leader.shard.say(1, vec![submit(task(0), &[]), done(task(0), 1, 7)]);
    let object = task(0).output(0);
    leader.settles();
    leader.hears_gone(object);
    assert_eq!(leader.answer(object), Answer::Lost(1));
    leader.shard.say(1, vec![next(task(0), 1)]);
    // What it says again while it makes another one is about the first.
    leader.hears_gone(object);
    leader.shard.say(1, vec![done(task(0), 2, 7)]);
    assert!(leader.says_here(object), "{:?}", leader.answer(object));
}

#[test]
fn a_copy_that_was_gone_does_not_count_against_a_record_that_comes_anew() {
    let mut leader = Leader::of(90);
    let object = task(0).output(0);
    leader.settles();
    leader.shard.say(1, vec![submit(task(0), &[]), done(task(0), 1, 7)]);
    leader.hears_gone(object);
    assert_eq!(leader.answer(object), Answer::Lost(1));
    // Nobody needs it, and its record is pruned; somebody submits it again.
    leader.shard.say(1, vec![release(object)]);
    assert!(!leader.shard.has(task(0)));
    leader.shard.say(1, vec![submit(task(0), &[]), done(task(0), 1, 7)]);
    assert!(leader.says_here(object), "{:?}", leader.answer(object));
    leader.hears_gone(object);
    assert_eq!(leader.answer(object), Answer::Lost(1));
}

#[test]
fn what_a_task_had_put_before_it_failed_is_there_as_long_as_somebody_has_it() {
    let mut leader = Leader::of(3);
    let object = task(0).output(FIRST_PUT_SLOT);
    leader.shard.say(1, vec![submit(task(0), &[])]);
    leader.shard.say(3, vec![hold(object)]);
    let Item::Done(plain) = done(task(0), 1, 7) else { unreachable!() };
    let failure = Some(proto::Failure::new(FailureKind::FailureUserError, "after it had put something"));
    let ended = proto::Done { failure, outputs: Vec::new(), executor: 3, ..plain };
    leader.shard.say(1, vec![Item::Done(ended)]);
    assert!(leader.says_here(object), "{:?}", leader.answer(object));
    leader.settles();
    leader.hears_gone(object);
    assert!(matches!(leader.answer(object), Answer::Failed(_)));
}

#[test]
fn what_a_task_had_put_before_it_failed_is_with_whoever_ran_it_before_that_node_reports_its_copy() {
    for retried in [false, true] {
        let mut leader = Leader::of(3);
        let object = task(0).output(FIRST_PUT_SLOT);
        leader.shard.say(1, vec![submit(task(0), &[])]);
        leader.shard.say(3, vec![hold(object), edge(object, task(1).output(0), true), release(object)]);
        let failure = Some(proto::Failure::new(FailureKind::FailureUserError, "after it had put something"));
        let fails = |attempt: u32| {
            let Item::Next(plain) = next(task(0), attempt) else { unreachable!() };
            Item::Next(proto::NextAttempt { failed: true, failure: failure.clone(), executor: 3, ..plain })
        };
        let said = if retried {
            (1..5).map(fails).collect()
        } else {
            let Item::Done(plain) = done(task(0), 1, 7) else { unreachable!() };
            vec![Item::Done(proto::Done { failure, outputs: Vec::new(), executor: 3, ..plain })]
        };
        leader.shard.say(1, said);
        leader.settles();
        assert!(leader.says_here(object), "{:?}", leader.answer(object));
        leader.hears_gone(object);
        assert!(matches!(leader.answer(object), Answer::Failed(_)));
    }
}

#[test]
fn a_report_that_was_overtaken_takes_nothing_away_and_brings_nothing_back() {
    let mut leader = Leader::of(3);
    let object = task(0).output(0);
    leader.shard.say(1, vec![submit(task(0), &[])]);
    leader.shard.say(1, vec![done(task(0), 1, 7)]);
    let report = |number: u64, full: bool, add: bool| proto::HoldingRequest {
        number,
        full,
        add: if add { vec![proto::object_bytes(object)] } else { Vec::new() },
        remove: if add || full { Vec::new() } else { vec![proto::object_bytes(object)] },
        ..Default::default()
    };
    let is_there = |leader: &Leader| leader.holdings.holders(object).next().is_some();
    leader.hears(report(1, true, false));
    leader.hears(report(2, false, true));
    // The first was sent twice, and comes twice.
    leader.hears(report(1, true, false));
    assert!(is_there(&leader));
    leader.hears(report(3, false, false));
    leader.hears(report(2, false, true));
    assert!(!is_there(&leader));
}

#[test]
fn an_element_of_a_task_that_failed_is_there_only_where_an_earlier_attempt_s_copy_is() {
    let mut leader = Leader::of(3);
    let (copied, other) = (task(0).element(0), task(0).element(1));
    leader.shard.say(1, vec![hold(copied), hold(other), submit(task(0), &[])]);
    let Item::Done(plain) = done(task(0), 1, 7) else { unreachable!() };
    let failure = Some(proto::Failure::new(FailureKind::FailureUserError, "no"));
    leader.shard.say(1, vec![Item::Done(proto::Done { failure, outputs: Vec::new(), executor: 3, ..plain })]);
    leader.settles();
    let add = vec![proto::object_bytes(copied)];
    leader.hears(proto::HoldingRequest { add, number: 2, ..Default::default() });
    assert!(leader.says_here(copied), "{:?}", leader.answer(copied));
    // Neither who ran it nor who refers to it has the other one: nobody is sent there in vain.
    assert!(matches!(leader.answer(other), Answer::Failed(_)), "{:?}", leader.answer(other));
}
