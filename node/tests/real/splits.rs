//! Tasks that return several objects: each is fetched, given away, lost and dropped by itself.

use super::{Cluster, Node, SOON, length, marks, metrics, slow};
use mobula::{Affinity, Blob, Client, Error, FailureKind, ObjectRef, Scope, Task, remote};
use std::time::{Duration, Instant};

pub const BYTES: usize = 400_000;

/// A small and a large one; leaves a mark each time.
#[remote]
fn pair(path: String, fill: u8) -> (u64, Blob) {
    marks(path, false);
    (u64::from(fill), vec![fill; BYTES].into())
}

/// As [`pair`], once `gate` has come.
#[remote]
fn pair_after(gate: u64, path: String, fill: u8) -> (u64, Blob) {
    pair(path, fill + (gate > 1_000_000) as u8)
}

#[remote]
async fn three_parts(n: u64) -> Result<[u64; 3], Error> {
    let one_more = super::add::remote(n, 1);
    Ok([n, one_more.get_async().await?, n + 2])
}

/// A task that submits one in parts, gives one of them to a third, and returns a reference to the other.
#[remote]
fn splits(path: String) -> Result<(ObjectRef<u64>, usize), Error> {
    let client = mobula::current();
    let (small, large) = client.submit_split(pair::task(path, 5));
    let length = client.submit(length::task(large));
    Ok((small, length.get()?))
}

#[remote]
fn plus_one(inside: Vec<ObjectRef<u64>>) -> Result<u64, Error> {
    Ok(inside[0].get()? + 1)
}

#[remote]
fn breaks(how: String) -> Result<(u64, Blob), String> {
    match how.as_str() {
        "panic" => panic!("on purpose"),
        "die" => std::process::abort(),
        "room" => Ok((1, vec![0; 100 << 20].into())),
        "slow" => Ok((slow(60_000), Blob::default())),
        _ => Err(how),
    }
}

pub fn mark(c: &Cluster, name: &str) -> (impl Fn() -> usize + use<>, String) {
    let path = c.dir.join(name);
    let name = path.display().to_string();
    (move || std::fs::read(&path).map_or(0, |marks| marks.len()), name)
}

/// One of a node's metrics.
fn count(c: &Cluster, node: usize, name: &str) -> u64 {
    let text = metrics(&c.address(node));
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("mobula_{name} ")).map(str::to_owned));
    line.expect("it is told").parse().expect("a number")
}

/// Waits until these nodes have so many bytes in memory together, and know of so many objects.
pub fn settles(c: &Cluster, nodes: &[usize], bytes: usize, objects: Option<u64>) {
    let until = Instant::now() + SOON;
    loop {
        let sum = |name| nodes.iter().map(|n| count(c, *n, name)).sum::<u64>();
        let (used, known) = (sum("object_store_used_bytes"), sum("objects_known"));
        // A little more than asked for: places have sizes of their own.
        let as_many = used / BYTES as u64 == (bytes / BYTES) as u64;
        if as_many && (bytes > 0 || used == 0) && objects.is_none_or(|objects| objects == known) {
            return;
        }
        assert!(Instant::now() < until, "{used} bytes and {known} objects, not {bytes} and {objects:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn on<T>(node: &str, task: Task<T>) -> Task<T> {
    task.node_affinity(node, Affinity::Hard)
}

pub fn elements_are_objects_of_their_own(c: &Cluster) {
    let client = c.connect(1);
    settles(c, &[1, 2], 0, Some(0));
    let (times, name) = mark(c, "pair-once");
    // Asked for and given away before it has begun: it waits for what takes a while.
    let gate = client.submit(slow::task(300));
    let (small, large) = client.submit_split(on("node-2", pair_after::task(&gate, name, 7)));
    let near = client.submit(on("node-1", length::task(&large)));
    let far = client.submit(on("node-2", length::task(&large)));
    assert!(!small.is_ready() && !large.is_ready());
    assert_eq!(small.get_timeout(SOON).expect("it runs"), 7);
    let lengths = (near.get_timeout(SOON).expect("it runs"), far.get_timeout(SOON).expect("it runs"));
    assert_eq!((lengths, times()), ((BYTES, BYTES), 1));
    assert!(large.get_timeout(SOON).expect("it is there").iter().all(|byte| *byte == 7));
    // A copy on each node; the small one stays when the large one goes.
    settles(c, &[1, 2], 2 * BYTES, None);
    drop((large, near, far, gate));
    settles(c, &[1, 2], 0, None);
    assert_eq!(client.submit(super::add::task(&small, 1)).get_timeout(SOON).expect("it runs"), 8);
    drop(small);
    client.wait_durable(SOON).expect("all is recorded");
    settles(c, &[1, 2], 0, Some(0));
    let [a, b, last] = client.submit_split(three_parts::task(5));
    let parts = [&a, &b, &last].map(|part| part.get_timeout(SOON).expect("it runs"));
    assert_eq!(parts, [5, 6, 7]);
    client.end(true).expect("the job ends");
}

/// Dropped at once, and before they were made: nothing stays, on neither node, while the job goes on.
pub fn elements_that_nobody_refers_to_go(c: &Cluster) {
    let client = c.connect(1);
    let (times, name) = mark(c, "pair-dropped");
    for n in 0..20u8 {
        let node = if n % 2 == 0 { "node-1" } else { "node-2" };
        let (small, large) = client.submit_split(on(node, pair::task(name.clone(), n)));
        match n % 5 {
            0 => drop((small, large)),
            1 => assert_eq!(small.get_timeout(SOON).expect("it runs"), u64::from(n)),
            2 => assert_eq!(large.get_timeout(SOON).expect("it runs").len(), BYTES),
            3 => drop(client.submit(length::task(large))),
            _ => {
                drop(large);
                assert_eq!(small.get_timeout(SOON).expect("it runs"), u64::from(n));
            }
        }
    }
    settles(c, &[1, 2], 0, Some(0));
    assert_eq!(times(), 20);
    client.end(true).expect("the job ends");
}

pub fn tasks_submit_tasks_in_parts(c: &Cluster) {
    let client = c.connect(2);
    let (times, name) = mark(c, "pair-in-task");
    let (inner, length) = client.submit_split(on("node-1", splits::task(name)));
    assert_eq!(length.get_timeout(SOON).expect("it runs"), BYTES);
    // What lies inside of an element outlives the task that submitted it.
    let value = inner.get_timeout(SOON).expect("it runs");
    drop((inner, length));
    assert_eq!(value.get_timeout(SOON).expect("it is held"), 5);
    // Inside another value it reaches a task on the other node, which asks for it there.
    let nested = client.submit(on("node-2", plus_one::task(vec![value])));
    assert_eq!(nested.get_timeout(SOON).expect("it runs"), 6);
    assert_eq!(times(), 1);
    client.end(true).expect("the job ends");
    settles(c, &[1, 2], 0, Some(0));
}

pub fn elements_fail_as_their_task_does(c: &Cluster) {
    let client = c.connect(1);
    let kind = |client: &Client, task: Task<(u64, Blob)>, text: &str| {
        let (small, large) = client.submit_split(task);
        let failed = |result: Result<(), Error>| match result {
            Err(Error::Task { kind, message, .. }) => {
                assert!(message.contains(text), "{message}");
                kind
            }
            other => panic!("{other:?}"),
        };
        let kinds = [failed(large.get_timeout(SOON).map(drop)), failed(small.get_timeout(SOON).map(drop))];
        assert_eq!(kinds[0], kinds[1]);
        kinds[0]
    };
    for node in ["node-1", "node-2"] {
        let task = |how: &str| on(node, breaks::task(how.to_owned()));
        assert_eq!(kind(&client, task("on purpose"), "on purpose"), FailureKind::FailureUserError);
        assert_eq!(kind(&client, task("panic"), "on purpose"), FailureKind::FailurePanic);
        assert_eq!(kind(&client, task("room"), "can never fit"), FailureKind::FailureStoreFull);
        let late = task("slow").timeout(Duration::from_millis(200));
        assert_eq!(kind(&client, late, "200ms"), FailureKind::FailureTimedOut);
        assert_eq!(kind(&client, task("die").retries(1), "died"), FailureKind::FailureWorkerDied);
    }
    // With one of them all are cancelled.
    let (small, large) = client.submit_split(breaks::task("slow".to_owned()));
    client.cancel(&large, Scope::Alone);
    assert!(matches!(small.get_timeout(SOON), Err(Error::Task { kind: FailureKind::FailureCancelled, .. })));
    drop((small, large));
    settles(c, &[1, 2], 0, Some(0));
    client.end(true).expect("the job ends");
}

/// The node that has an element is killed. The task runs again for it; the other one, of which there is a copy, stays what it
/// is.
pub fn a_lost_element_is_made_again(c: &Cluster) {
    let client = c.connect(1);
    let (times, name) = mark(c, "pair-again");
    let node = Node::start(c, 9, "ninth");
    let both = |client: &Client, name: &str| {
        let task = pair::task(name.to_owned(), 3).node_affinity("node-9", Affinity::Soft);
        let (small, large) = client.submit_split(task);
        assert_eq!(small.get_timeout(SOON).expect("it runs"), 3);
        (small, large)
    };
    let (small, large) = both(&client, &name);
    let (here_times, here_name) = mark(c, "pair-here");
    let (small_here, here) = both(&client, &here_name);
    assert_eq!(here.get_timeout(SOON).expect("it is brought").len(), BYTES);
    client.wait_durable(SOON).expect("all is recorded");
    node.kill();
    assert!(large.get_timeout(SOON).expect("it is made again").iter().all(|byte| *byte == 3));
    assert_eq!((small.get_timeout(SOON).expect("it is there"), times()), (3, 2));
    assert_eq!(client.submit(length::task(&here)).get_timeout(SOON).expect("it is there"), BYTES);
    assert_eq!((small_here.get_timeout(SOON).expect("it is there"), here_times()), (3, 1));
    drop((small, large, small_here, here));
    settles(c, &[1, 2], 0, Some(0));
    client.end(true).expect("the job ends");
}
