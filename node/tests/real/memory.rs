//! Tasks that take more memory than there is for them.

use super::options::kind;
use super::{Cluster, Node, SOON, add, marks};
use mobula::{Affinity, Error, FailureKind, remote};
use mobula_node::NodeConfig;
use std::time::Duration;

/// Takes so many millions of bytes, bit by bit, and keeps them until it ends; each begin leaves a mark.
#[remote]
fn takes(path: String, mb: usize) -> usize {
    marks(path, false);
    let mut taken = Vec::new();
    for _ in 0..mb / 10 {
        taken.push(vec![1u8; 10_000_000]);
        std::thread::sleep(Duration::from_millis(1));
    }
    // Long enough to be seen with it.
    std::thread::sleep(Duration::from_secs(if mb > 50 { 10 } else { 0 }));
    taken.iter().map(|bytes| bytes.iter().filter(|byte| **byte == 1).count()).sum()
}

/// It ends with a cause that says what was used, what was allowed, and what to do; its node goes on.
pub fn a_task_has_no_more_memory_than_it_may(c: &Cluster) {
    let client = c.connect(1);
    let path = c.dir.join("takes-too-much");
    let task = takes::task(path.display().to_string(), 300).memory_limit_mb(100);
    let beside = client.submit(super::slow::task(500).memory_limit_mb(100));
    let Err(Error::Task { kind, message, .. }) = client.submit(task).get_timeout(SOON) else {
        panic!("it takes 300 MB")
    };
    assert_eq!(kind, FailureKind::FailureOutOfMemory, "{message}");
    assert!(message.contains("may have 100 MB") && message.contains("memory_limit_mb"), "{message}");
    let notices = client.take_notices();
    assert!(notices.iter().any(|n| n.kind == "out-of-memory" && n.bytes > 100_000_000), "{notices:?}");
    assert_eq!(std::fs::read(&path).expect("it began").len(), 1, "once");
    assert_eq!(beside.get_timeout(SOON).expect("it took nothing"), 500);
    let name = path.display().to_string();
    let enough = client.submit(takes::task(name, 30).memory_limit_mb(100));
    assert_eq!(enough.get_timeout(SOON).expect("it may have so much"), 30_000_000);
    assert_eq!(client.submit(add::task(1, 2)).get_timeout(SOON).expect("runs"), 3);
    client.end(true).expect("the job ends");
}

/// A node for which any use is too much: whoever has something worth it ends, and is tried as often as it may.
pub fn a_node_without_memory_ends_who_takes_most_of_it(c: &Cluster) {
    let node = Node::start_with(c, NodeConfig { memory_full: 0.0, ..c.node_config(9, "full") });
    let client = c.connect(1);
    let path = c.dir.join("takes-from-all");
    let here = |task: mobula::Task<usize>| task.node_affinity("node-9", Affinity::Hard);
    let name = path.display().to_string();
    let ended = client.submit(here(takes::task(name.clone(), 200).retries(1))).get_timeout(SOON);
    assert_eq!(kind(ended), FailureKind::FailureNodeOutOfMemory);
    assert_eq!(std::fs::read(&path).expect("it began").len(), 2, "twice");
    let little = client.submit(here(takes::task(name, 30)));
    assert_eq!(little.get_timeout(SOON).expect("its end would free nothing"), 30_000_000);
    client.end(true).expect("the job ends");
    node.kill();
}
