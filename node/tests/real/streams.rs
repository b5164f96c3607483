//! Tasks that return a stream: taken while they run, and no faster made than that.

use super::{Cluster, Node, SOON, add, marks, slow};
use crate::splits::{BYTES, mark, on, settles};
use mobula::{
    Affinity, Blob, Client, Error, FailureKind, ObjectRef, RetryOn, Stream, Streamed, Task, remote,
};
use std::time::{Duration, Instant};

fn bytes_of(n: u64) -> usize {
    if n.is_multiple_of(2) { 8 } else { BYTES }
}

/// Small and large ones in turn; leaves a mark for each.
#[remote]
fn items(path: String, many: u64) -> Streamed<Blob> {
    Streamed::new((0..many).map(move |n| {
        marks(path.clone(), false);
        Blob::from(vec![n as u8; bytes_of(n)])
    }))
}

/// Takes its worker along the first time it comes to item `at`.
#[remote]
fn items_dying(path: String, marker: String, many: u64, at: u64) -> Streamed<Blob> {
    Streamed::new((0..many).map(move |n| {
        if n == at && std::fs::create_dir(&marker).is_ok() {
            std::process::abort();
        }
        marks(path.clone(), false);
        Blob::from(vec![n as u8; bytes_of(n)])
    }))
}

#[remote]
fn counted(many: u64) -> Streamed<u64> {
    Streamed::new(0..many)
}

/// Five items, and then the end that it is told.
#[remote]
fn broken(how: String) -> Result<Streamed<u64>, String> {
    if how == "at once" {
        return Err(how);
    }
    Ok(Streamed::fallible((0..6u64).map(move |n| match (n, how.as_str()) {
        (5, "panic") => panic!("on purpose"),
        (5, "slow") => Ok(slow(60_000)),
        (5, _) => Err(how.clone()),
        _ => Ok(n),
    })))
}

/// Each item is the reference of a task that it submits.
#[remote]
async fn promises(many: u64) -> Streamed<ObjectRef<u64>> {
    Streamed::new((0..many).map(|n| add::remote(n, 1)))
}

/// Says whether this is its first attempt: a task that is not deterministic.
#[remote]
fn differs(marker: String) -> Streamed<u64> {
    let first = std::fs::create_dir(&marker).is_ok();
    Streamed::new((0..9u64).map(move |n| match (n, first) {
        (4, true) => std::process::abort(),
        (n, true) => n,
        (n, false) => n + 1,
    }))
}

/// Takes a stream inside a task, and dies once half-way.
#[remote]
fn total(marker: String, many: u64, at: u64) -> Result<u64, Error> {
    let mut sum = 0;
    for (n, item) in mobula::current().submit_stream(counted::task(many).window(3)).enumerate() {
        sum += item?.get()?;
        if n as u64 == at && std::fs::create_dir(&marker).is_ok() {
            std::process::abort();
        }
    }
    Ok(sum)
}

/// The same in an `async` task, with items that lie on the other node.
#[remote]
async fn total_async(many: u64) -> Result<u64, Error> {
    let task = counted::task(many).window(3).node_affinity("node-1", Affinity::Hard);
    let (mut stream, mut sum) = (mobula::current().submit_stream(task), 0);
    while let Some(item) = stream.next_async().await {
        sum += item?.get_async().await?;
    }
    Ok(sum)
}

/// Takes three, and fails the first time.
#[remote]
fn gives_up(marker: String) -> Result<u64, String> {
    let mut stream = mobula::current().submit_stream(counted::task(100).window(2));
    let three: Vec<ObjectRef<u64>> = stream.by_ref().take(3).map(|item| item.expect("an item")).collect();
    drop(stream);
    match std::fs::create_dir(&marker) {
        Ok(()) => Err("not yet".to_owned()),
        Err(_) => Ok(three.iter().map(|item| item.get().expect("it is there")).sum()),
    }
}

fn next<T>(stream: &mut Stream<T>) -> ObjectRef<T> {
    stream.next_timeout(SOON).expect("there is one more").expect("an item")
}

fn check(n: u64, item: &ObjectRef<Blob>) {
    let bytes = item.get_timeout(SOON).expect("it is there");
    assert_eq!((bytes.len(), bytes[0]), (bytes_of(n), n as u8));
}

fn ends<T>(stream: &mut Stream<T>) {
    assert!(stream.next_timeout(SOON).is_none());
    assert!(stream.next().is_none(), "and stays at its end");
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < late, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn items_are_taken_while_their_task_runs(c: &Cluster) {
    let client = c.connect(1);
    settles(c, &[1, 2], 0, Some(0));
    for node in ["node-1", "node-2"] {
        let (made, name) = mark(c, &format!("items-{node}"));
        let mut stream = client.submit_stream(on(node, items::task(name, 30)).window(4));
        let mut kept = Vec::new();
        for n in 0..30 {
            let item = next(&mut stream);
            assert!(made() <= n as usize + 1 + 4, "{} were made when {} were taken", made(), n + 1);
            check(n, &item);
            if n == 5 {
                // It goes as far as it may, and there it waits; its CPU is others' meanwhile.
                until("it never makes more than half of what it may", || made() >= 8);
                let others: Vec<_> = (0..8).map(|i| client.submit(on(node, add::task(i, 1)))).collect();
                assert!(others.iter().all(|other| other.get_timeout(SOON).is_ok()));
                assert!(made() <= 10);
            }
            kept.extend((n % 10 == 7).then_some(item));
        }
        ends(&mut stream);
        assert_eq!((made(), stream.taken()), (30, 30));
        drop(stream);
        // Each is an object like any other.
        let lengths = kept.iter().map(|item| client.submit(super::length::task(item)).get_timeout(SOON));
        assert!(lengths.into_iter().all(|length| length.expect("it runs") == BYTES));
        check(27, &kept[2]);
        drop(kept);
        settles(c, &[1, 2], 0, Some(0));
    }
    // As an iterator, with the window that nobody chose.
    let all: u64 = client
        .submit_stream(counted::task(100))
        .map(|item| item.expect("an item").get().expect("it is there"))
        .sum();
    assert_eq!(all, 4950);
    ends(&mut client.submit_stream(counted::task(0)));
    client.end(true).expect("the job ends");
}

/// Forty times as much as the store has room for, on either node, with a window of three.
pub fn a_long_stream_takes_no_more_than_its_window(c: &Cluster) {
    let client = c.connect(1);
    for node in ["node-1", "node-2"] {
        let (_, name) = mark(c, &format!("long-{node}"));
        let mut stream = client.submit_stream(on(node, items::task(name, 600)).window(3));
        for n in 0..600 {
            check(n, &next(&mut stream));
        }
        ends(&mut stream);
        drop(stream);
        settles(c, &[1, 2], 0, Some(0));
    }
    client.end(true).expect("the job ends");
}

pub fn streams_end_with_their_failure_after_their_items(c: &Cluster) {
    let client = c.connect(1);
    let taken = |task: Task<Streamed<u64>>, text: &str| {
        let mut stream = client.submit_stream(task);
        let mut items = Vec::new();
        loop {
            match stream.next_timeout(SOON).expect("it does not end well") {
                Ok(item) => items.push(item),
                Err(Error::Task { kind, message, .. }) => {
                    assert!(message.contains(text), "{message}");
                    let values = items.iter().map(|item| item.get_timeout(SOON).expect("it is there"));
                    assert!(values.eq(0..items.len() as u64));
                    ends(&mut stream);
                    return (kind, items.len());
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    for node in ["node-1", "node-2"] {
        let task = |how: &str| on(node, broken::task(how.to_owned())).window(2);
        assert_eq!(taken(task("on purpose"), "on purpose"), (FailureKind::FailureUserError, 5));
        assert_eq!(taken(task("at once"), "at once"), (FailureKind::FailureUserError, 0));
        assert_eq!(taken(task("panic"), "on purpose"), (FailureKind::FailurePanic, 5));
        let late = task("slow").timeout(Duration::from_millis(300));
        assert_eq!(taken(late, "300ms"), (FailureKind::FailureTimedOut, 5));
        let again = task("on purpose").retry_on(RetryOn::Errors).retries(2);
        assert_eq!(taken(again, "on purpose"), (FailureKind::FailureUserError, 5));
    }
    // Submitted as what it is not.
    let refused = client.submit(counted::task(3));
    assert_eq!(client.wait(std::slice::from_ref(&refused), 1, SOON), [true]);
    drop(refused);
    settles(c, &[1, 2], 0, Some(0));
    client.end(true).expect("the job ends");
}

pub fn a_stream_that_is_dropped_or_cancelled_ends(c: &Cluster) {
    let client = c.connect(1);
    for node in ["node-1", "node-2"] {
        for taken in [0, 3] {
            let (_, name) = mark(c, &format!("dropped-{node}-{taken}"));
            let mut stream = client.submit_stream(on(node, items::task(name, 1_000_000)).window(3));
            let kept: Vec<_> = (0..taken).map(|_| next(&mut stream)).collect();
            drop(stream);
            (0..).zip(&kept).for_each(|(n, item)| check(n, item));
            drop(kept);
            settles(c, &[1, 2], 0, Some(0));
        }
        let mut stream = client.submit_stream(on(node, counted::task(1_000_000)).window(3));
        let first = next(&mut stream);
        stream.cancel();
        let last = stream.by_ref().find_map(Result::err).expect("it fails");
        assert!(matches!(last, Error::Task { kind: FailureKind::FailureCancelled, .. }), "{last:?}");
        assert_eq!(first.get_timeout(SOON).expect("it is there"), 0);
        drop((first, stream));
        settles(c, &[1, 2], 0, Some(0));
    }
    client.end(true).expect("the job ends");
}

/// The producer's worker dies half-way, and its node: each item comes once and in order, and those that were taken are what they
/// were.
pub fn a_stream_goes_on_when_its_worker_or_node_dies(c: &Cluster) {
    let client = c.connect(1);
    for node in ["node-1", "node-2"] {
        let (made, name) = mark(c, &format!("dying-{node}"));
        let marker = c.dir.join(format!("died-{node}")).display().to_string();
        let mut stream = client.submit_stream(on(node, items_dying::task(name, marker, 20, 9)).window(4));
        let all: Vec<_> = (0..20).map(|_| next(&mut stream)).collect();
        ends(&mut stream);
        (0..).zip(&all).for_each(|(n, item)| check(n, item));
        assert_eq!(made(), 29);
    }
    let (made, name) = mark(c, "items-ninth");
    let ninth = Node::start(c, 9, "ninth");
    let task = items::task(name, 20).node_affinity("node-9", Affinity::Soft);
    let mut stream = client.submit_stream(task.window(4));
    let mut all: Vec<_> = (0..8).map(|_| next(&mut stream)).collect();
    check(1, &all[1]);
    until("it never makes more than half of what it may", || made() >= 10);
    ninth.kill();
    all.extend((8..20).map(|_| next(&mut stream)));
    ends(&mut stream);
    (0..).zip(&all).for_each(|(n, item)| check(n, item));
    drop((all, stream));
    // All were taken, and lie on a node that dies after the end: whoever wants one makes the task run again.
    let (made, name) = mark(c, "items-tenth");
    let tenth = Node::start(c, 10, "tenth");
    let task = items::task(name, 10).node_affinity("node-10", Affinity::Soft);
    let mut stream = client.submit_stream(task.window(4));
    let all: Vec<_> = (0..10).map(|_| next(&mut stream)).collect();
    ends(&mut stream);
    client.wait_durable(SOON).expect("all is recorded");
    tenth.kill();
    check(9, &all[9]);
    assert_eq!(made(), 20);
    drop((all, stream));
    settles(c, &[1, 2], 0, Some(0));
    client.end(true).expect("the job ends");
}

pub fn another_attempt_must_make_the_same_items(c: &Cluster) {
    let client = c.connect(1);
    for node in ["node-1", "node-2"] {
        let marker = c.dir.join(format!("differs-{node}")).display().to_string();
        let mut stream = client.submit_stream(on(node, differs::task(marker)).window(3));
        let last = stream.by_ref().find_map(Result::err).expect("it fails");
        assert!(matches!(&last, Error::Task { kind: FailureKind::FailureDiverged, .. }), "{last:?}");
        ends(&mut stream);
    }
    settles(c, &[1, 2], 0, Some(0));
    client.end(true).expect("the job ends");
}

pub fn items_may_hold_references_and_tasks_may_take_streams(c: &Cluster) {
    let client = c.connect(1);
    for node in ["node-1", "node-2"] {
        let promised: Vec<u64> = client
            .submit_stream(on(node, promises::task(12)).window(2))
            .map(|item| item.expect("an item").get_timeout(SOON).expect("it is there"))
            .map(|inner| inner.get_timeout(SOON).expect("it runs"))
            .collect();
        assert!(promised.into_iter().eq(1..13));
        let marker = c.dir.join(format!("total-{node}")).display().to_string();
        let sum = client.submit(on(node, total::task(marker, 40, 20)));
        assert_eq!(sum.get_timeout(SOON).expect("it runs"), 780);
        let marker = c.dir.join(format!("gives-up-{node}")).display().to_string();
        let again = on(node, gives_up::task(marker)).retry_on(RetryOn::Errors);
        assert_eq!(client.submit(again).get_timeout(SOON).expect("the second time"), 3);
    }
    let sum = client.submit(on("node-2", total_async::task(50)));
    assert_eq!(sum.get_timeout(SOON).expect("it runs"), 1225);
    drop(sum);
    settles(c, &[1, 2], 0, Some(0));
    client.end(true).expect("the job ends");
}

/// The driver is gone in the middle.
pub fn streams_of_a_driver_that_is_gone_leave_nothing(c: &Cluster) {
    let lost: Client = c.connect(1);
    let streams: Vec<_> = ["node-1", "node-2"]
        .iter()
        .map(|node| {
            let (_, name) = mark(c, &format!("lost-{node}"));
            let mut stream = lost.submit_stream(on(node, items::task(name, 1_000_000)).window(3));
            drop((next(&mut stream), next(&mut stream)));
            stream
        })
        .collect();
    lost.end(false).expect("the job ends");
    settles(c, &[1, 2], 0, Some(0));
    drop(streams);
}
