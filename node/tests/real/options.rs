//! What a task may ask for: where it runs, which GPUs, an end before its end, another try.

use super::{Cluster, SOON};
use mobula::{Affinity, Error, FailureKind, Label, RetryOn, Scope, remote};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[remote]
pub fn which_node() -> u64 {
    mobula::current().node()
}

#[remote]
fn which_process() -> u32 {
    std::process::id()
}

#[remote]
pub fn which_gpus() -> (Vec<u32>, String) {
    let client = mobula::current();
    (client.devices().to_vec(), client.visible_devices())
}

/// Goes on until it is told to stop; `marker` says that it has begun, and another that it has stopped.
#[remote]
fn spins(marker: String) -> u64 {
    std::fs::create_dir_all(&marker).expect("a directory");
    while !mobula::current().is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::fs::create_dir_all(stopped(Path::new(&marker))).expect("a directory");
    1
}

/// Waits for a child that never ends.
#[remote]
async fn waits(marker: String) -> Result<u64, Error> {
    spins::remote(marker).get_async().await
}

#[remote]
fn ignores_all() -> u64 {
    std::thread::sleep(Duration::from_secs(3600));
    1
}

/// Fails the first time.
#[remote]
fn busy_once(marker: String) -> Result<u64, String> {
    if std::fs::create_dir(&marker).is_ok() { Err("the server is busy".into()) } else { Ok(42) }
}

/// Takes a moment, but for ever where nobody has made the directory before.
#[remote]
fn stuck_first(marker: String) -> u64 {
    std::thread::sleep(Duration::from_millis(2));
    let is_first = !marker.is_empty() && std::fs::create_dir(&marker).is_ok();
    while is_first && !mobula::current().is_cancelled() {
        std::thread::sleep(Duration::from_millis(1));
    }
    mobula::current().node()
}

fn stopped(marker: &Path) -> PathBuf {
    marker.with_extension("stopped")
}

fn marker(c: &Cluster, name: &str) -> (PathBuf, String) {
    let path = c.dir.join(name);
    (path.clone(), path.display().to_string())
}

fn comes(path: &Path) {
    let until = Instant::now() + SOON;
    while !path.exists() {
        assert!(Instant::now() < until, "{} never comes", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn kind<T>(result: Result<T, Error>) -> FailureKind {
    match result {
        Err(Error::Task { kind, .. }) => kind,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it has a value"),
    }
}

pub fn tasks_choose_their_node(c: &Cluster) {
    let client = c.connect(1);
    let second = c.connect(2);
    let (one, two) = (client.node(), second.node());
    second.end(true).expect("the job ends");
    let runs_on = |task: mobula::Task<u64>| client.submit(task).get_timeout(SOON).expect("runs");
    assert_eq!(runs_on(which_node::task().node_affinity("node-2", Affinity::Hard)), two);
    assert_eq!(runs_on(which_node::task().node_affinity(two, Affinity::Hard)), two);
    assert_eq!(runs_on(which_node::task().node_affinity("nowhere", Affinity::Soft)), one);
    assert_eq!(runs_on(which_node::task().label(Label::is_in("number", ["2", "7"]))), two);
    assert_eq!(runs_on(which_node::task().label(Label::not_in("number", ["2"]))), one);
    let many: Vec<_> = (0..4).map(|_| client.submit(which_node::task().spread())).collect();
    let seen: BTreeSet<u64> = many.iter().map(|r| r.get_timeout(SOON).expect("runs")).collect();
    assert_eq!(seen, [one, two].into());
    let never = client.submit(which_node::task().label(Label::exists("moon"))).get_timeout(SOON);
    let text = never.expect_err("no such node").to_string();
    assert!(text.contains("there is a label moon") && text.contains("number=2"), "{text}");
    assert!(client.take_notices().iter().any(|n| n.kind == "infeasible" && text.contains(&n.text)));
    client.end(true).expect("the job ends");
}

pub fn gpus_are_numbered(c: &Cluster) {
    let client = c.connect(1);
    let both = client.submit(which_gpus::task().gpus(2.0)).get_timeout(SOON).expect("runs");
    assert_eq!(both, (vec![0, 1], "0,1".into()));
    let part = client.submit(which_gpus::task().gpus(0.25)).get_timeout(SOON).expect("runs");
    assert_eq!(part.0.len(), 1);
    let none = client.submit(which_gpus::task()).get_timeout(SOON).expect("runs");
    assert_eq!(none, (vec![], String::new()));
    let wrong = client.submit(which_gpus::task().gpus(1.5)).get_timeout(SOON);
    assert_eq!(kind(wrong), FailureKind::FailureBadArguments);
    client.end(true).expect("the job ends");
}

pub fn cancelled_tasks_stop(c: &Cluster) {
    let client = c.connect(1);
    let ((path, name), (inner, inner_name)) = (marker(c, "spins"), marker(c, "waits"));
    let spinning = client.submit(spins::task(name).node_affinity("node-2", Affinity::Hard));
    let waiting = client.submit(waits::task(inner_name));
    let after = client.submit(super::add::task(&spinning, 1));
    comes(&path);
    comes(&inner);
    client.cancel(&spinning, Scope::Alone);
    assert_eq!(kind(spinning.get_timeout(SOON)), FailureKind::FailureCancelled);
    assert_eq!(kind(after.get_timeout(SOON)), FailureKind::FailureDependency);
    comes(&stopped(&path));
    client.cancel(&waiting, Scope::WithChildren);
    assert_eq!(kind(waiting.get_timeout(SOON)), FailureKind::FailureCancelled);
    comes(&stopped(&inner));
    // One that does not listen is killed.
    let deaf = client.submit(ignores_all::task().cpus(2.0));
    let queued = client.submit(super::add::task(1, 1).cpus(2.0).node_affinity("node-1", Affinity::Hard));
    client.cancel(&deaf, Scope::Alone);
    assert_eq!(kind(deaf.get_timeout(SOON)), FailureKind::FailureCancelled);
    assert_eq!(queued.get_timeout(SOON).expect("the node goes on"), 2);
    client.cancel(&queued, Scope::WithChildren);
    assert_eq!(queued.get_timeout(SOON).expect("it has ended"), 2);
    client.end(true).expect("the job ends");
}

pub fn a_pure_straggler_begins_elsewhere_too(c: &Cluster) {
    let options = mobula::ConnectOptions { socket: c.socket(1), hedge_permille: 100, ..Default::default() };
    let client = mobula::Client::connect(options).expect("the daemon answers");
    let ((path, name), (stuck, stuck_name)) = (marker(c, "busy"), marker(c, "stuck"));
    // Node 1 has enough to do for now, so everything else goes to node 2.
    let busy = client.submit(spins::task(name).cpus(2.0).node_affinity("node-1", Affinity::Hard));
    comes(&path);
    let behind: Vec<_> = (0..3).map(|_| client.submit(which_process::task())).collect();
    for _ in 0..40 {
        let at = client.submit(stuck_first::task(String::new()).pure()).get_timeout(SOON).expect("runs");
        assert_ne!(at, client.node());
    }
    let straggler = client.submit(stuck_first::task(stuck_name).pure());
    comes(&stuck);
    client.cancel(&busy, Scope::Alone);
    assert_eq!(straggler.get_timeout(SOON).expect("it is made elsewhere"), client.node());
    let hedges = client.take_notices().into_iter().filter(|notice| notice.kind == "hedge");
    assert!(hedges.map(|notice| notice.text).all(|text| text.contains("node-2")));
    behind.iter().for_each(|task| assert!(task.get_timeout(SOON).is_ok()));
    client.end(true).expect("the job ends");
}

pub fn tasks_have_time_limits_and_retries(c: &Cluster) {
    let client = c.connect(1);
    let (_, name) = marker(c, "too-long");
    let late = client.submit(spins::task(name).timeout(Duration::from_millis(50)));
    assert_eq!(kind(late.get_timeout(SOON)), FailureKind::FailureTimedOut);
    let busy = |name: &str| busy_once::task(marker(c, name).1);
    let asked = client.submit(busy("asked").retry_on(RetryOn::Errors));
    let by_text = client.submit(busy("by-text").retry_on(RetryOn::ErrorsWith("busy".into())));
    let by_other = client.submit(busy("by-other").retry_on(RetryOn::ErrorsWith("gone".into())));
    let not_asked = client.submit(busy("not-asked"));
    assert_eq!(asked.get_timeout(SOON).expect("the second time"), 42);
    assert_eq!(by_text.get_timeout(SOON).expect("the second time"), 42);
    assert_eq!(kind(by_other.get_timeout(SOON)), FailureKind::FailureUserError);
    assert_eq!(kind(not_asked.get_timeout(SOON)), FailureKind::FailureUserError);
    // Out of retries, it is the error that stands.
    let always = client.submit(super::halve::task(7).retries(2).retry_on(RetryOn::Errors)).get_timeout(SOON);
    let Err(Error::Task { kind, message, causes }) = always else { panic!("7 is odd") };
    assert_eq!((kind, message.as_str()), (FailureKind::FailureUserError, "7 is odd"));
    assert!(causes.iter().any(|cause| cause.contains("3 attempts")), "{causes:?}");
    client.end(true).expect("the job ends");
}

pub fn workers_end_after_so_many_tasks(c: &Cluster) {
    let options = mobula::ConnectOptions {
        socket: c.socket(1),
        tasks_per_worker: std::num::NonZeroU32::new(3),
        ..Default::default()
    };
    let client = mobula::Client::connect(options).expect("the daemon answers");
    let mut tasks = std::collections::BTreeMap::<u32, u32>::new();
    for _ in 0..12 {
        let process = client.submit(which_process::task()).get_timeout(SOON).expect("runs");
        *tasks.entry(process).or_default() += 1;
    }
    assert!(tasks.len() >= 4 && tasks.values().all(|had| *had <= 3), "{tasks:?}");
    client.end(true).expect("the job ends");
}
