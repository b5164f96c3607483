//! What is put so that it lies on several nodes outlives some of them.

use super::{Cluster, Node, SOON, marks, metrics};
use mobula::{Affinity, Blob, Error, ObjectRef, remote};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const BYTES: usize = 400_000;

/// Puts a value with so many copies, and leaves a mark each time it does.
#[remote]
fn puts(path: String, replicas: u32) -> Result<ObjectRef<Blob>, Error> {
    marks(path, false);
    mobula::current().put_with(&Blob::from(vec![7; BYTES])).replicas(replicas).store()
}

/// As [`puts`], of a value that lies in no shared memory.
#[remote]
async fn puts_small(path: String, replicas: u32) -> Result<ObjectRef<u64>, Error> {
    marks(path, false);
    mobula::current().put_with(&77u64).replicas(replicas).store_async().await
}

/// The sum of one of a node's metrics over some nodes.
fn count(c: &Cluster, nodes: &[usize], name: &str) -> u64 {
    let of_one = |n: &usize| {
        let text = metrics(&c.address(*n));
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.expect("it is told").parse::<u64>().expect("a number")
    };
    nodes.iter().map(of_one).sum()
}

/// Waits until the nodes together hold so many bytes and no copy is awaited.
fn settles(c: &Cluster, nodes: &[usize], copies: u64) {
    let until = Instant::now() + SOON;
    loop {
        let bytes = count(c, nodes, "mobula_object_store_used_bytes");
        let awaited = count(c, nodes, "mobula_object_copies_awaited");
        let seen_to = count(c, nodes, "mobula_objects_replicated");
        if bytes / BYTES as u64 == copies && awaited == 0 && (seen_to > 0 || copies == 0) {
            return;
        }
        assert!(Instant::now() < until, "{bytes} bytes at {nodes:?}, {awaited} awaited, {seen_to} seen to");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until nodes 1 and 2 know of one object for which they are too few.
fn one_is_short(c: &Cluster) {
    let until = Instant::now() + SOON;
    while count(c, &[1, 2], "mobula_objects_short_of_copies") != 1 {
        assert!(Instant::now() < until, "{}", metrics(&c.address(1)));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn times(path: &Path) -> usize {
    std::fs::read(path).map_or(0, |marks| marks.len())
}

fn mark(c: &Cluster, name: &str) -> (PathBuf, String) {
    let path = c.dir.join(name);
    (path.clone(), path.display().to_string())
}

/// The node that put it is killed; then, once the copy that is missing has been made up for, another one that had it.
/// What put it runs once.
pub fn copies_outlive_their_nodes(c: &Cluster) {
    let client = c.connect(1);
    let (path, name) = mark(c, "puts-once");
    let (small_path, small_name) = mark(c, "puts-small-once");
    let third = Node::start(c, 5, "third");
    let task = puts::task(name, 2).node_affinity("node-5", Affinity::Hard);
    let blob = client.submit(task).get_timeout(SOON).expect("runs");
    let task = puts_small::task(small_name, 3).node_affinity("node-5", Affinity::Hard);
    let small = client.submit(task).get_timeout(SOON).expect("runs");
    client.wait_durable(SOON).expect("all records are acknowledged");
    settles(c, &[1, 2, third.number], 2);
    third.kill();
    // Node 1 or 2 had the other one: by now both do.
    settles(c, &[1, 2], 2);
    // Of the small one there shall be three.
    one_is_short(c);
    let fourth = Node::start(c, 6, "fourth");
    assert_eq!(small.get_timeout(SOON).expect("is there"), 77);
    assert!(blob.get_timeout(SOON).expect("is there").iter().all(|byte| *byte == 7));
    assert_eq!((times(&path), times(&small_path)), (1, 1), "nothing ran again");
    drop((blob, small));
    settles(c, &[1, 2, fourth.number], 0);

    // Of a driver's, on three nodes: two of them die, one after the other.
    let fifth = Node::start(c, 7, "fifth");
    let blob = client.put_with(&Blob::from(vec![9; BYTES])).replicas(4).store().expect("stored");
    settles(c, &[1, 2, fourth.number, fifth.number], 4);
    fourth.kill();
    fifth.kill();
    settles(c, &[1, 2], 2);
    one_is_short(c);
    let sixth = Node::start(c, 8, "sixth");
    settles(c, &[1, 2, sixth.number], 3);
    assert!(blob.get_timeout(SOON).expect("is there").iter().all(|byte| *byte == 9));
    sixth.kill();
    client.end(true).expect("the job ends");
    settles(c, &[1, 2], 0);
}
