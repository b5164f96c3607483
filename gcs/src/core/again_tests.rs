//! Records that come again, and tasks that their keeper gives up (R6, R7).

use super::refs_tests::{Shard, deliver, done, edge, hold, is_empty, next, release, submit, task, task_in};
use mobula_proto as proto;
use proto::item_outcome::Outcome;
use proto::stream_item::Item;

#[test]
fn a_record_that_comes_again_keeps_its_edges() {
    let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
    let (user, arg) = (task_in(0), task_in(1));
    let named = || edge(arg.output(0), user.output(0), false);
    b.say(1, vec![submit(arg, &[]), done(arg, 1, 7), named()]);
    a.say(1, vec![submit(user, &[arg.output(0)]), done(user, 1, 7), release(user.output(0))]);
    // Before the end is told, the parent is replayed: it names and submits once more.
    b.say(1, vec![named()]);
    a.say(1, vec![submit(user, &[arg.output(0)])]);
    assert_eq!(deliver(&mut a, 0, &mut b), 2);
    b.say(1, vec![release(arg.output(0))]);
    assert!(b.has(arg), "the new record names it");
    a.say(1, vec![done(user, 1, 7), release(user.output(0))]);
    deliver(&mut a, 0, &mut b);
    assert!(is_empty(&a.state) && is_empty(&b.state));
}

#[test]
fn a_record_that_comes_again_is_early_until_edges_of_the_earlier_one_have_ended() {
    let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
    let (outer, inner) = (task_in(0), task_in(1));
    let contains = || edge(inner.output(0), outer.output(0), true);
    let made = || {
        let Item::Done(plain) = done(outer, 1, 8) else { unreachable!() };
        Item::Done(proto::Done { contains: vec![proto::object_bytes(inner.output(0))], ..plain })
    };
    b.say(1, vec![submit(inner, &[]), done(inner, 1, 7), contains()]);
    a.say(1, vec![submit(outer, &[])]);
    a.say(1, vec![made(), release(outer.output(0))]);
    a.settle();
    assert!(!a.has(outer) && a.state.counting.outbox().len() == 1);
    // A replayed parent submits it again before that is told.
    let again = |a: &mut Shard| match &a.say(1, vec![submit(outer, &[])])[..] {
        [Outcome::Early(true)] => (true, true),
        [Outcome::Known(view)] => (false, view.early),
        said => panic!("{said:?}"),
    };
    assert_eq!((again(&mut a), again(&mut a)), ((true, true), (false, true)));
    a.start_again();
    assert_eq!(deliver(&mut a, 0, &mut b), 1);
    assert_eq!(again(&mut a), (false, false));
    // Now it runs, and nothing is on its way that would end the edge of what it makes.
    b.say(1, vec![contains(), release(inner.output(0))]);
    a.say(1, vec![made()]);
    assert_eq!(deliver(&mut a, 0, &mut b), 0);
    assert!(b.has(inner));
    a.say(1, vec![release(outer.output(0))]);
    a.settle();
    deliver(&mut a, 0, &mut b);
    b.settle();
    assert!(is_empty(&a.state) && is_empty(&b.state));
}

#[test]
fn an_end_that_is_delivered_between_an_edge_and_its_record_has_the_edge_told_once_more() {
    let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
    let (user, arg) = (task_in(0), task_in(1));
    let named = || edge(arg.output(0), user.output(0), false);
    b.say(1, vec![submit(arg, &[]), done(arg, 1, 7), named()]);
    assert_eq!(a.say(1, vec![submit(user, &[arg.output(0)])]), [], "it is there for the first time");
    a.say(1, vec![done(user, 1, 7), release(user.output(0))]);
    a.settle();
    // A replayed parent names it on another node before the end is told; its record comes after.
    b.say(2, vec![named(), hold(arg.output(0))]);
    assert_eq!(deliver(&mut a, 0, &mut b), 1);
    assert_eq!(a.say(2, vec![submit(user, &[arg.output(0)])]), [Outcome::Early(true)]);
    let asked = a.say(2, vec![submit(user, &[arg.output(0)])]);
    assert!(matches!(&asked[..], [Outcome::Known(view)] if !view.early), "{asked:?}");
    b.say(2, vec![named(), release(arg.output(0))]);
    b.say(1, vec![release(arg.output(0))]);
    assert!(b.has(arg), "the new record names it");
}

#[test]
fn a_record_that_goes_between_an_edge_and_its_next_life_does_not_take_the_edge_along() {
    let mut a = Shard::new(0, 1);
    let (user, arg) = (task(0), task(1));
    let named = || edge(arg.output(0), user.output(0), false);
    a.say(
        1,
        vec![submit(arg, &[]), done(arg, 1, 7), named(), submit(user, &[arg.output(0)]), done(user, 1, 7)],
    );
    // A replayed parent names it on another node before it is let go of; its record comes after.
    a.say(2, vec![named(), hold(arg.output(0))]);
    a.say(1, vec![release(user.output(0)), release(arg.output(0))]);
    a.settle();
    assert!(!a.has(user) && a.has(arg));
    assert_eq!(a.say(2, vec![submit(user, &[arg.output(0)]), release(arg.output(0))]), []);
    a.settle();
    assert!(a.has(arg), "the new record names it");
    a.say(2, vec![done(user, 1, 7), release(user.output(0))]);
    a.settle();
    assert!(is_empty(&a.state));
}

#[test]
fn who_gives_a_record_up_does_not_take_the_edge_of_another_s_along() {
    let mut a = Shard::new(0, 1);
    let (user, arg) = (task(0), task(1));
    let named = || edge(arg.output(0), user.output(0), false);
    let given_up = || {
        let (object, by) = (proto::object_bytes(arg.output(0)), proto::object_bytes(user.output(0)));
        Item::Unname(proto::Unname { object, by })
    };
    a.say(1, vec![submit(arg, &[]), done(arg, 1, 7)]);
    // One node's record lingers and is elided; its parent's next attempt has submitted the task elsewhere meanwhile.
    a.say(2, vec![named()]);
    a.say(3, vec![named(), submit(user, &[arg.output(0)])]);
    a.say(2, vec![named(), given_up()]);
    a.say(1, vec![release(arg.output(0))]);
    a.settle();
    assert!(a.has(arg), "the record names it");
    a.say(3, vec![done(user, 1, 7), release(user.output(0))]);
    a.settle();
    assert!(is_empty(&a.state));
    // The same before the other's record is there, and then that of the one that is left.
    a.say(1, vec![submit(arg, &[]), done(arg, 1, 7)]);
    a.say(2, vec![named()]);
    a.say(3, vec![named()]);
    a.say(2, vec![given_up()]);
    a.say(1, vec![release(arg.output(0))]);
    a.settle();
    assert!(a.has(arg), "the other has named it, too");
    a.say(3, vec![given_up()]);
    a.settle();
    assert!(!a.has(arg));
}

#[test]
fn who_submits_again_holds_it_too() {
    let mut shard = Shard::new(0, 1);
    let (id, object) = (task(0), task(0).output(0));
    shard.say(1, vec![submit(id, &[]), done(id, 1, 7)]);
    assert!(matches!(&shard.say(2, vec![submit(id, &[])])[..], [Outcome::Known(_)]));
    shard.fence(1);
    shard.settle();
    assert!(shard.has(id));
    shard.say(2, vec![release(object)]);
    assert!(is_empty(&shard.state));
}

#[test]
fn a_task_that_its_keeper_gives_up_goes_if_nobody_needs_it_and_else_may_be_taken_over() {
    let (mut a, mut b) = (Shard::new(0, 2), Shard::new(1, 2));
    let (task, argument) = (task_in(0), task_in(1).output(0));
    let given_up = || {
        let Item::Next(plain) = next(task, 1) else { unreachable!() };
        Item::Next(proto::NextAttempt { abandoned: true, ..plain })
    };
    for needed in [false, true] {
        b.say(1, vec![edge(argument, task.output(0), false)]);
        a.say(1, vec![submit(task, &[argument])]);
        if needed {
            a.say(3, vec![hold(task.output(0))]);
        }
        assert!(a.say(2, vec![given_up()]).is_empty() && a.has(task), "it is not for others to say");
        assert!(a.say(1, vec![given_up(), release(task.output(0))]).len() <= 1);
        a.settle();
        assert_eq!(a.has(task), needed);
        if needed {
            assert!(matches!(a.say(3, vec![next(task, 1)])[..], [Outcome::Granted(_)]));
            a.say(3, vec![done(task, 2, 7), release(task.output(0))]);
            a.settle();
        }
        deliver(&mut a, 0, &mut b);
        b.settle();
        assert!(is_empty(&a.state) && is_empty(&b.state));
    }
}
