//! Placement groups as a user meets them.

use super::options::{kind, which_gpus, which_node};
use super::{Cluster, SOON};
use mobula::{Bundle, Error, FailureKind, GroupHandle, Strategy, remote};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Waits for the group that it is told of, and says where it is.
#[remote]
async fn looks_at(group: GroupHandle) -> Result<Vec<Option<u64>>, Error> {
    let group = mobula::current().group(group);
    group.ready_async().await?;
    group.nodes()
}

fn waits_for(group: &mobula::PlacementGroup) -> String {
    match group.ready(Some(Duration::from_millis(300))) {
        Err(Error::NotPlaced { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// Waits until a group says why it waits.
fn why(group: &mobula::PlacementGroup) -> String {
    let until = Instant::now() + SOON;
    loop {
        match group.why() {
            Some(why) => return why,
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            None => panic!("it never says why it waits"),
        }
    }
}

pub fn tasks_run_in_what_is_reserved(c: &Cluster) {
    let client = c.connect(1);
    let bundles = || [Bundle::cpus(1.0).gpus(1.0), Bundle::cpus(1.0).gpus(1.0)];
    let group = client.placement_group(bundles(), Strategy::StrictSpread).expect("taken");
    group.ready(Some(SOON)).expect("there is room");
    let nodes: Vec<u64> = group.nodes().expect("there").into_iter().flatten().collect();
    assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), 2, "each on a node of its own");
    for (bundle, node) in (0..).zip(&nodes) {
        let there = client.submit(which_node::task().in_bundle(&group, bundle));
        assert_eq!(there.get_timeout(SOON).expect("runs"), *node);
        let (gpus, _) = client
            .submit(which_gpus::task().gpus(1.0).in_bundle(&group, bundle))
            .get_timeout(SOON)
            .expect("runs");
        assert_eq!(gpus.len(), 1);
    }
    // Of what is reserved, both are used when there is more to do than one can.
    let many: Vec<_> = (0..40).map(|_| client.submit(which_node::task().in_group(&group))).collect();
    let seen: BTreeSet<u64> = many.iter().map(|r| r.get_timeout(SOON).expect("runs")).collect();
    assert!(seen.is_subset(&nodes.iter().copied().collect()));
    // Other programs of the job know it by its handle.
    let told = client.submit(looks_at::task(group.handle()).cpus(0.0)).get_timeout(SOON).expect("runs");
    assert_eq!(told.into_iter().flatten().collect::<Vec<_>>(), nodes);
    // What is in nobody's group has what is left: one CPU of each node.
    let beside = client.submit(super::add::task(1, 2)).get_timeout(SOON).expect("runs");
    assert_eq!(beside, 3);

    let large = client.submit(which_node::task().cpus(2.0).in_group(&group)).get_timeout(SOON);
    assert!(
        large
            .as_ref()
            .is_err_and(|error| error.to_string().contains("no bundle of its placement group has that"))
    );
    assert_eq!(kind(large), FailureKind::FailureInfeasible);
    let missing = client.submit(which_node::task().in_bundle(&group, 2)).get_timeout(SOON);
    assert_eq!(kind(missing), FailureKind::FailureBadArguments);
    let both = client.submit(which_node::task().spread().in_group(&group)).get_timeout(SOON);
    assert_eq!(kind(both), FailureKind::FailureBadArguments);

    group.remove().expect("removed");
    group.remove().expect("twice is as good as once");
    let late = client.submit(which_node::task().in_group(&group)).get_timeout(SOON);
    assert_eq!(kind(late), FailureKind::FailureGroupRemoved);
    assert_eq!(kind(group.ready(Some(SOON))), FailureKind::FailureGroupRemoved);
    // All of it is free again.
    let all = [Bundle::cpus(2.0).gpus(2.0), Bundle::cpus(2.0).gpus(2.0)];
    let whole = client.placement_group(all, Strategy::Spread).expect("taken");
    whole.ready(Some(SOON)).expect("nothing is left over of the other");
    client.end(true).expect("the job ends");
    // And so it is when the job has ended.
    let next = c.connect(2);
    let whole =
        next.placement_group([Bundle::cpus(2.0), Bundle::cpus(2.0)], Strategy::StrictSpread).expect("taken");
    whole.ready(Some(SOON)).expect("a group ends with its job");
    next.end(true).expect("the job ends");
}

pub fn a_group_that_cannot_be_placed_says_why(c: &Cluster) {
    let client = c.connect(1);
    let wrong = |bundles: Vec<Bundle>| match client.placement_group(bundles, Strategy::Pack) {
        Err(error) => (error.to_string(), kind(Err::<(), _>(error))),
        Ok(_) => panic!("taken"),
    };
    for (bundles, said) in [
        (vec![], "at least one bundle"),
        (vec![Bundle::cpus(1.0); 257], "at most 256 bundles, not 257"),
        (vec![Bundle::cpus(-1.0)], "bundle 0: -1 is no amount of CPUs"),
        (vec![Bundle::cpus(1.0), Bundle::cpus(0.0)], "bundle 1: it asks for nothing"),
        (vec![Bundle::cpus(1.0).resource("tape", 1e18)], "more than any node may offer"),
        (vec![Bundle::cpus(1.0).gpus(1.5)], "whole GPUs"),
    ] {
        let (text, kind) = wrong(bundles);
        assert!(text.contains(said), "{text}");
        assert_eq!(kind, FailureKind::FailureBadArguments);
    }
    let group =
        client.placement_group([Bundle::cpus(1.0), Bundle::cpus(64.0)], Strategy::Spread).expect("taken");
    let text = why(&group);
    assert!(text.contains("bundle 1 asks for cpu 64, and no node offers that (the largest, node-"), "{text}");
    assert_eq!(waits_for(&group), text);
    let waits = client.submit(which_node::task().in_group(&group));
    assert_eq!(client.wait(std::slice::from_ref(&waits), 1, Duration::from_millis(100)), [false]);
    assert!(client.take_notices().iter().any(|n| n.kind == "group-waits" && n.text.contains(&text)));
    group.remove().expect("removed");
    assert_eq!(kind(waits.get_timeout(SOON)), FailureKind::FailureGroupRemoved);

    // What tasks use is waited for, and goes to the group before tasks that have not begun.
    let busy: Vec<_> = (0..40).map(|_| client.submit(super::slow::task(50))).collect();
    let all = client
        .placement_group([Bundle::cpus(2.0), Bundle::cpus(2.0)], Strategy::StrictSpread)
        .expect("taken");
    all.ready(Some(SOON)).expect("tasks end");
    let inside = client.submit(which_node::task().in_group(&all)).get_timeout(SOON).expect("runs");
    assert!(all.nodes().expect("there").contains(&Some(inside)));
    all.remove().expect("removed");
    assert!(busy.iter().all(|task| task.get_timeout(SOON).is_ok()), "the others had only to wait");
    client.end(true).expect("the job ends");
}

pub fn bundles_of_a_node_that_is_gone_are_placed_again(c: &Cluster) {
    let (stop, third) = c.start_node(8, "only-8");
    let client = c.connect(1);
    let group = client.placement_group(vec![Bundle::cpus(1.0); 3], Strategy::StrictSpread).expect("taken");
    group.ready(Some(SOON)).expect("there are three nodes");
    let before = group.nodes().expect("there");
    stop.send(()).expect("it runs");
    third.join().expect("it ends cleanly");
    let until = Instant::now() + SOON;
    while group.nodes().expect("there").iter().all(Option::is_some) {
        assert!(Instant::now() < until, "nobody has noticed");
        std::thread::sleep(Duration::from_millis(5));
    }
    let text = why(&group);
    assert!(text.contains("strict spread asks for 3 nodes"), "{text}");
    // Tasks in the others go on.
    let lost = group.nodes().expect("there").iter().position(Option::is_none).expect("one") as u32;
    let other = (lost + 1) % 3;
    client
        .submit(which_node::task().in_bundle(&group, other))
        .get_timeout(SOON)
        .expect("it stays where it is");
    let waits = client.submit(which_node::task().in_bundle(&group, lost));
    let (stop, fourth) = c.start_node(9, "only-9");
    let new = waits.get_timeout(SOON).expect("it has a place again");
    group.ready(Some(SOON)).expect("all of it is");
    let after = group.nodes().expect("there");
    assert_eq!(after[lost as usize], Some(new));
    assert!(!before.contains(&Some(new)), "another node");
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert_eq!(changed, 1, "the others stay: {before:?}, {after:?}");
    client.end(true).expect("the job ends");
    stop.send(()).expect("it runs");
    fourth.join().expect("it ends cleanly");
}
