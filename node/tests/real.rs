//! One head, two nodes, real worker processes: the API as a user meets it.
//!
//! The test binary serves as worker binary, so it has a `main` of its own.

use mobula::{Blob, Client, ConnectOptions, Error, FailureKind, Many, ObjectRef, remote};
#[path = "real/copies.rs"]
mod copies;
#[path = "real/groups.rs"]
mod groups;
#[path = "real/memory.rs"]
mod memory;
#[path = "real/options.rs"]
mod options;
#[path = "real/packages.rs"]
mod packages;
#[path = "real/splits.rs"]
mod splits;
#[path = "real/streams.rs"]
mod streams;

use mobula_gcs::{Head, HeadConfig, Parts as HeadParts};
use mobula_net::tcp::TcpNet;
use mobula_node::NodeConfig;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

#[remote]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[remote]
fn sum(numbers: Many<u64>) -> u64 {
    numbers.0.iter().sum()
}

#[remote]
fn halve(n: u64) -> Result<u64, String> {
    if n.is_multiple_of(2) { Ok(n / 2) } else { Err(format!("{n} is odd")) }
}

#[remote]
fn panics() -> u64 {
    panic!("on purpose")
}

#[remote]
fn zeros(len: usize, fill: u8) -> Blob {
    vec![fill; len].into()
}

#[remote]
fn length(blob: Blob) -> usize {
    blob.len()
}

#[remote]
fn fibonacci(n: u64) -> Result<u64, Error> {
    if n < 2 {
        return Ok(n);
    }
    let (a, b) = (fibonacci::remote(n - 1), fibonacci::remote(n - 2));
    Ok(a.get()? + b.get()?)
}

#[remote]
fn make_and_pass_on() -> Vec<ObjectRef<u64>> {
    (0..3).map(|i| add::remote(i, 10)).collect()
}

#[remote]
fn put_inside() -> Result<ObjectRef<Blob>, Error> {
    mobula::current().put(&Blob::from(vec![7; 300_000]))
}

#[remote]
fn slow(ms: u64) -> u64 {
    std::thread::sleep(Duration::from_millis(ms));
    ms
}

/// Kills its worker the first time; `marker` tells the times apart.
#[remote]
fn dies_once(marker: String) -> u64 {
    if std::fs::create_dir(&marker).is_ok() {
        std::process::abort();
    }
    42
}

#[remote]
fn always_dies() -> u64 {
    std::process::abort()
}

#[remote]
async fn add_later(a: u64) -> Result<u64, Error> {
    let b = add::remote(a, 1);
    Ok(b.get_async().await? + 1)
}

struct Cluster {
    dir: PathBuf,
    head: String,
    /// Where nodes listen, in the order of their starts.
    addresses: Mutex<Vec<String>>,
    stop: Vec<oneshot::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

impl Cluster {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("mobula-real-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let (head, addresses) = (String::new(), Mutex::default());
        let mut cluster = Cluster { dir: dir.clone(), head, addresses, stop: vec![], threads: vec![] };
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        cluster.stop.push(stop);
        let head_dir = dir.join("head");
        cluster.threads.push(std::thread::spawn(move || {
            let disk = Arc::new(mobula_base::disk::RealDisk::new(head_dir).expect("a directory"));
            runtime().block_on(mobula_gcs::in_scope(1, async move {
                let parts = HeadParts::new(Arc::new(TcpNet), disk);
                let head = Head::start(HeadConfig::default(), parts).await.expect("the head starts");
                tell.send(head.address().to_owned()).expect("the test waits");
                let _ = head.run_until_shutdown(async { drop(stopped.await) }).await;
            }));
        }));
        cluster.head = told.recv_timeout(Duration::from_secs(30)).expect("a head");
        for n in 1..=2u32 {
            let (stop, thread) = cluster.start_node(n, &format!("only-{n}"));
            cluster.stop.push(stop);
            cluster.threads.push(thread);
        }
        cluster
    }

    fn socket(&self, n: u32) -> PathBuf {
        self.dir.join(format!("node-{n}.sock"))
    }

    fn node_config(&self, n: u32, resource: &str) -> NodeConfig {
        NodeConfig {
            name: format!("node-{n}"),
            heads: vec![self.head.clone()],
            listen: "127.0.0.1:0".into(),
            socket: self.socket(n),
            workers: 2,
            resources: vec![(resource.to_owned(), 4.0), ("gpu".to_owned(), 2.0)],
            labels: vec![("number".to_owned(), n.to_string())],
            store_bytes: 64 << 20,
            linger: mobula_node::LINGER,
            late: Duration::ZERO,
            spill_dir: None,
            packages_dir: Some(self.dir.join(format!("node-{n}"))),
            memory_full: 1.0,
            pages: Default::default(),
            seed: u64::from(n),
        }
    }

    /// Starts a node that offers a resource; it ends with the first.
    fn start_node(&self, n: u32, resource: &str) -> (oneshot::Sender<()>, std::thread::JoinHandle<()>) {
        let config = self.node_config(n, resource);
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let ready = move |ready: mobula_node::Ready| tell.send(ready.address).unwrap_or_default();
            let node = mobula_node::run(config, Arc::new(TcpNet), ready, async { drop(stopped.await) });
            runtime().block_on(node).expect("the node runs");
        });
        let address = told.recv_timeout(Duration::from_secs(30)).expect("a node");
        self.addresses.lock().expect("not poisoned").push(address);
        (stop, thread)
    }

    /// Where the node that was started as the n-th answers.
    fn address(&self, n: usize) -> String {
        self.addresses.lock().expect("not poisoned")[n - 1].clone()
    }

    fn connect(&self, n: u32) -> Client {
        let options =
            ConnectOptions { socket: self.socket(n), job_name: "test".into(), ..Default::default() };
        Client::connect(options).expect("the daemon answers")
    }

    fn end(mut self) {
        for stop in self.stop.drain(..).rev() {
            let _ = stop.send(());
        }
        for thread in self.threads.drain(..).rev() {
            thread.join().expect("it ends cleanly");
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A node that may be killed: it ends where it is, and says goodbye to nobody.
struct Node {
    /// In the order of starts.
    number: usize,
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Node {
    fn start(c: &Cluster, n: u32, resource: &str) -> Self {
        Self::start_with(c, c.node_config(n, resource))
    }

    fn start_with(c: &Cluster, config: NodeConfig) -> Self {
        let (tell, told) = mpsc::channel();
        let (kill, killed) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let ready = move |ready: mobula_node::Ready| tell.send(ready.address).unwrap_or_default();
            let node = mobula_node::run(config, Arc::new(TcpNet), ready, std::future::pending());
            runtime().block_on(async {
                tokio::select! {
                    ended = node => ended.expect("the node runs"),
                    _ = killed => {}
                }
            });
        });
        let address = told.recv_timeout(Duration::from_secs(30)).expect("a node");
        let mut addresses = c.addresses.lock().expect("not poisoned");
        addresses.push(address);
        Node { number: addresses.len(), kill, thread }
    }

    fn kill(self) {
        self.kill.send(()).expect("it runs");
        self.thread.join().expect("it ends");
    }
}

/// A story and its name.
type Test = (&'static str, fn(&Cluster));

const SOON: Duration = Duration::from_secs(20);

fn values_and_chains(c: &Cluster) {
    let client = c.connect(1);
    let three = client.submit(add::task(1, 2));
    let ten = client.submit(add::task(&three, 7));
    assert_eq!(ten.get_timeout(SOON).expect("runs"), 10);
    let parts: Vec<_> = (0..200).map(|i| client.submit(add::task(i, 1))).collect();
    let total = client.submit(sum::task(&parts));
    assert_eq!(total.get_timeout(SOON).expect("runs"), (1..=200).sum::<u64>());
    assert_eq!(client.submit(add_later::task(5)).get_timeout(SOON).expect("runs"), 7);
    client.end(true).expect("the job ends");
}

/// One more than before, and how many tasks this worker has given back.
#[remote]
fn one_more(before: (u64, u64)) -> (u64, u64) {
    (before.0 + 1, before.1.max(mobula::not_begun()))
}

fn a_worker_has_what_it_made(c: &Cluster) {
    let client = c.connect(1);
    // From the second on the function is known to be short, and tasks stand behind each other.
    for _ in 0..3 {
        let mut last = client.submit(one_more::task((0u64, 0u64)));
        for _ in 1..300 {
            last = client.submit(one_more::task(&last));
        }
        assert_eq!(last.get_timeout(SOON).expect("runs"), (300, 0));
    }
    client.end(true).expect("the job ends");
}

fn large_objects_and_puts(c: &Cluster) {
    let client = c.connect(1);
    let here = client.submit(zeros::task(3_000_000, 1).resource("only-1", 1.0));
    let there = client.submit(zeros::task(2_000_000, 2).resource("only-2", 1.0));
    let far = client.submit(length::task(&here).resource("only-2", 1.0));
    let near = client.submit(length::task(&there).resource("only-1", 1.0));
    assert_eq!(far.get_timeout(SOON).expect("crosses over"), 3_000_000);
    assert_eq!(near.get_timeout(SOON).expect("crosses over"), 2_000_000);
    assert!(there.get_timeout(SOON).expect("crosses over").iter().all(|b| *b == 2));
    let small = client.put(&17u64).expect("stored");
    let large = client.put(&Blob::from(vec![9; 400_000])).expect("stored");
    assert_eq!(
        client.submit(add::task(&small, 1).resource("only-2", 1.0)).get_timeout(SOON).expect("runs"),
        18
    );
    assert_eq!(client.submit(length::task(&large)).get_timeout(SOON).expect("runs"), 400_000);
    assert_eq!(large.get_timeout(SOON).expect("is here").len(), 400_000);
    let too_large = client.submit(zeros::task(100 << 20, 0)).get_timeout(SOON);
    let text = too_large.expect_err("larger than the store").to_string();
    assert!(text.contains("can never fit"), "{text}");
    client.end(true).expect("the job ends");
}

fn nested_tasks(c: &Cluster) {
    let client = c.connect(1);
    assert_eq!(client.submit(fibonacci::task(9)).get_timeout(SOON).expect("runs"), 34);
    let passed = client.submit(make_and_pass_on::task()).get_timeout(SOON);
    assert_eq!(passed.expect("runs").len(), 3);
    drop(client.submit(put_inside::task()).get_timeout(SOON).expect("runs"));
    client.end(true).expect("the job ends");
}

fn failures_have_causes(c: &Cluster) {
    let client = c.connect(2);
    let odd = client.submit(halve::task(7));
    let after = client.submit(add::task(&odd, 1));
    let Err(Error::Task { kind, message, .. }) = odd.get_timeout(SOON) else { panic!("7 is odd") };
    assert_eq!((kind, message.as_str()), (FailureKind::FailureUserError, "7 is odd"));
    let Err(Error::Task { kind, causes, .. }) = after.get_timeout(SOON) else {
        panic!("its argument failed")
    };
    assert_eq!(kind, FailureKind::FailureDependency);
    assert!(causes[0].contains("7 is odd"), "{causes:?}");
    let Err(Error::Task { kind, message, .. }) = client.submit(panics::task()).get_timeout(SOON) else {
        panic!("it panics")
    };
    assert_eq!((kind, message.as_str()), (FailureKind::FailurePanic, "on purpose"));
    let never = client.submit(add::task(1, 2).cpus(64.0)).get_timeout(SOON);
    assert!(never.expect_err("no such node").to_string().contains("can never be placed"));
    let late = client.submit(slow::task(2000)).get_timeout(Duration::from_millis(20));
    assert!(matches!(late, Err(Error::Timeout(_))));
    let missing = mobula::Task::<u64>::new("no::such::function", mobula::Args::default());
    let Err(Error::Task { kind, message, .. }) = client.submit(missing).get_timeout(SOON) else {
        panic!("missing")
    };
    assert_eq!(kind, FailureKind::FailureFunctionNotRegistered, "{message}");
    let wrong = mobula::Task::<u64>::new(concat!(module_path!(), "::add"), mobula::Args::default());
    let Err(Error::Task { kind, message, .. }) = client.submit(wrong).get_timeout(SOON) else {
        panic!("no args")
    };
    assert_eq!(kind, FailureKind::FailureBadArguments, "{message}");
    client.end(true).expect("the job ends");
}

/// Leaves a mark each time it begins, and may take its worker with it.
#[remote]
fn marks(path: String, dies: bool) -> u64 {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
    file.write_all(b"x").expect("written");
    if dies {
        std::process::abort();
    }
    0
}

fn what_may_not_run_twice_does_not_whatever_stood_before_it(c: &Cluster) {
    let client = c.connect(1);
    let harmless = c.dir.join("harmless").display().to_string();
    let mark = || client.submit(marks::task(harmless.clone(), false));
    // Then it is known to be short, and several stand in a worker's line.
    for _ in 0..50 {
        assert_eq!(mark().get_timeout(SOON).expect("runs"), 0);
    }
    for round in 0..20 {
        let path = c.dir.join(format!("mark-{round}"));
        let before: Vec<_> = (0..6).map(|_| mark()).collect();
        let fatal = client.submit(marks::task(path.display().to_string(), true).retries(0));
        let Err(Error::Task { kind, .. }) = fatal.get_timeout(SOON) else { panic!("it always dies") };
        assert_eq!(kind, FailureKind::FailureMayHaveRun);
        assert_eq!(std::fs::read(&path).expect("it began").len(), 1, "once");
        for other in before {
            assert_eq!(other.get_timeout(SOON).expect("runs, again if need be"), 0);
        }
    }
    client.end(true).expect("the job ends");
}

fn dead_workers_are_replaced(c: &Cluster) {
    let client = c.connect(1);
    let marker = c.dir.join("died").display().to_string();
    assert_eq!(client.submit(dies_once::task(marker)).get_timeout(SOON).expect("runs again"), 42);
    let Err(Error::Task { kind, .. }) = client.submit(always_dies::task().retries(1)).get_timeout(SOON)
    else {
        panic!("it always dies")
    };
    assert_eq!(kind, FailureKind::FailureWorkerDied);
    let Err(Error::Task { kind, .. }) = client.submit(always_dies::task().retries(0)).get_timeout(SOON)
    else {
        panic!("it always dies")
    };
    assert_eq!(kind, FailureKind::FailureMayHaveRun);
    assert_eq!(client.submit(add::task(1, 1)).get_timeout(SOON).expect("the cluster goes on"), 2);
    client.end(true).expect("the job ends");
}

fn what_a_job_with_commit_is_told_is_durable(c: &Cluster) {
    let durability = mobula::Durability::Commit;
    let client = c.connect(1).with_durability(durability);
    for n in 0..20 {
        assert_eq!(client.submit(add::task(n, 1)).get_timeout(SOON).expect("runs"), n + 1);
        assert_eq!(client.committed(), client.submitted());
    }
    // Also of what its tasks submit: the sum of a tree.
    assert_eq!(client.submit(fibonacci::task(5)).get_timeout(SOON).expect("runs"), 5);
    client.end(true).expect("the job ends");
}

fn waiting_and_acknowledgements(c: &Cluster) {
    let client = c.connect(1);
    let refs: Vec<_> = [1, 1, 3000].into_iter().map(|ms| client.submit(slow::task(ms).cpus(0.5))).collect();
    let ready = client.wait(&refs, 2, SOON);
    assert_eq!(ready, vec![true, true, false]);
    let mut committed = Vec::new();
    for _ in 0..1000 {
        committed.extend(client.take_committed());
        if committed.len() == 3 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(committed.len(), 3, "every record is acknowledged");
    assert!(committed.iter().all(|(_, revision)| *revision > 0));
    client.end(true).expect("the job ends");
}

/// Moves all slots of one shard to another and waits for the end of it.
async fn move_all(operator: &mobula_gcs::Client, request: u64, from: u32, to: u32) {
    let start = mobula_proto::StartSlotPlan { request, from, to, count: 1024, ..Default::default() };
    let until = Instant::now() + SOON;
    loop {
        match operator.move_slots(start.clone(), SOON).await {
            Ok(reply) if reply.finished => return,
            Ok(_) => {}
            // The cluster is only now raising the level of its formats.
            Err(error) => assert!(error.to_string().contains("upgrade all heads"), "{error}"),
        }
        assert!(Instant::now() < until, "the move from {from} to {to} does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every slot moves, some of them three times, while a job submits; then what lies with one node is lost.
fn slots_move_under_a_job(c: &Cluster) {
    let (stop, first) = c.start_node(3, "here");
    let client = c.connect(1);
    let blobs: Vec<_> =
        (0..6).map(|n| client.submit(zeros::task(300_000, n).resource("here", 1.0))).collect();
    assert!(client.wait(&blobs, 6, SOON).into_iter().all(|ready| ready));
    let small = client.put(&100u64).expect("stored");
    let (over, is_over) = mpsc::channel();
    let head = c.head.clone();
    let operator = std::thread::spawn(move || {
        runtime().block_on(async {
            let operator = mobula_gcs::Client::new(Arc::new(TcpNet), vec![head], 7);
            operator.connect(SOON).await.expect("connects");
            for (request, (from, to)) in (1u64..).zip([(0, 1), (1, 2), (2, 3), (3, 0)]) {
                move_all(&operator, request, from, to).await;
            }
            assert_eq!(operator.slot_table(SOON).await.expect("told").map.expect("there").epoch, 5);
        });
        over.send(()).expect("the test waits");
    });
    // Tasks that build on what came before, for as long as slots move, and some more.
    let (mut refs, mut sums, mut more) = (Vec::new(), Vec::new(), 5);
    while more > 0 {
        let base = sums.len() as u64;
        refs.extend((0..40).map(|n| client.submit(add::task(&small, base * 40 + n))));
        sums.push(client.submit(sum::task(&refs[refs.len() - 40..])));
        sums.last().expect("just pushed").get_timeout(SOON).expect("runs");
        more -= usize::from(more < 5 || is_over.try_recv().is_ok());
    }
    operator.join().expect("all slots have moved");
    for (n, value) in refs.iter().enumerate() {
        assert_eq!(value.get_timeout(SOON).expect("runs"), 100 + n as u64);
    }
    // The only copies go with their node; what made them is found where it lies now.
    let (stop_second, second) = c.start_node(4, "here");
    stop.send(()).expect("it runs");
    first.join().expect("it ends cleanly");
    for (n, blob) in blobs.iter().enumerate() {
        let rebuilt = blob.get_timeout(SOON).expect("is rebuilt");
        assert!(rebuilt.len() == 300_000 && rebuilt.iter().all(|byte| *byte == n as u8));
    }
    client.wait_durable(SOON).expect("all records are acknowledged");
    let records = client.take_committed().len();
    assert_eq!(
        (records, client.committed()),
        (6 + refs.len() + sums.len(), client.submitted()),
        "none was elided"
    );
    client.end(true).expect("the job ends");
    stop_second.send(()).expect("it runs");
    second.join().expect("it ends cleanly");
}

/// What Prometheus reads at a node.
fn metrics(address: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).expect("listening");
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    answer
}

fn nodes_count_what_they_have(c: &Cluster) {
    let client = c.connect(1);
    let blob = client.put(&Blob::from(vec![9; 400_000])).expect("stored");
    // Four at once would fit no node; two run and two wait, on node 1 alone.
    let slow: Vec<_> =
        (0..4).map(|_| client.submit(slow::task(1500).cpus(1.0).resource("only-1", 0.5))).collect();
    let wanted = [
        "mobula_tasks{state=\"placed\"} ",
        "mobula_task_attempts{state=\"running\"} 2\n",
        "mobula_scheduler_queue{class=\"cpu 1, only-1 0.5\"} ",
        "mobula_workers{state=\"busy\"} 2\n",
        "mobula_drivers 1\n",
        "mobula_node_cpus_free 0.0\n",
        "mobula_object_store_used_bytes 400",
        "mobula_objects{state=\"sealed\"} 1\n",
        "mobula_rpc_retries_total{method=\"ControlStore/Propose\"} ",
    ];
    let until = Instant::now() + SOON;
    let mut missing = wanted.to_vec();
    while !missing.is_empty() {
        assert!(Instant::now() < until, "no {missing:?} in {}", metrics(&c.address(1)));
        let now = metrics(&c.address(1));
        missing.retain(|line| !now.contains(line));
    }
    for slow in slow {
        slow.get_timeout(SOON).expect("runs");
    }
    assert!(metrics(&c.address(2)).contains("mobula_task_attempts{state=\"running\"} 0\n"));
    drop(blob);
    client.end(true).expect("the job ends");
}

fn main() {
    mobula::run_worker_if_asked();
    packages::drive_if_asked();
    let cluster = Cluster::start();
    let tests: [Test; 38] = [
        ("nodes_count_what_they_have", nodes_count_what_they_have),
        ("values_and_chains", values_and_chains),
        ("a_worker_has_what_it_made", a_worker_has_what_it_made),
        ("large_objects_and_puts", large_objects_and_puts),
        ("nested_tasks", nested_tasks),
        ("failures_have_causes", failures_have_causes),
        (
            "what_may_not_run_twice_does_not_whatever_stood_before_it",
            what_may_not_run_twice_does_not_whatever_stood_before_it,
        ),
        ("dead_workers_are_replaced", dead_workers_are_replaced),
        ("what_a_job_with_commit_is_told_is_durable", what_a_job_with_commit_is_told_is_durable),
        ("waiting_and_acknowledgements", waiting_and_acknowledgements),
        ("tasks_choose_their_node", options::tasks_choose_their_node),
        ("gpus_are_numbered", options::gpus_are_numbered),
        ("cancelled_tasks_stop", options::cancelled_tasks_stop),
        ("a_pure_straggler_begins_elsewhere_too", options::a_pure_straggler_begins_elsewhere_too),
        ("workers_end_after_so_many_tasks", options::workers_end_after_so_many_tasks),
        ("tasks_have_time_limits_and_retries", options::tasks_have_time_limits_and_retries),
        (
            "a_binary_and_files_travel_to_nodes_that_never_saw_them",
            packages::a_binary_and_files_travel_to_nodes_that_never_saw_them,
        ),
        ("a_job_with_a_wrong_runtime_is_refused", packages::a_job_with_a_wrong_runtime_is_refused),
        ("tasks_run_in_what_is_reserved", groups::tasks_run_in_what_is_reserved),
        ("a_group_that_cannot_be_placed_says_why", groups::a_group_that_cannot_be_placed_says_why),
        (
            "bundles_of_a_node_that_is_gone_are_placed_again",
            groups::bundles_of_a_node_that_is_gone_are_placed_again,
        ),
        ("a_task_has_no_more_memory_than_it_may", memory::a_task_has_no_more_memory_than_it_may),
        (
            "a_node_without_memory_ends_who_takes_most_of_it",
            memory::a_node_without_memory_ends_who_takes_most_of_it,
        ),
        ("copies_outlive_their_nodes", copies::copies_outlive_their_nodes),
        ("elements_are_objects_of_their_own", splits::elements_are_objects_of_their_own),
        ("elements_that_nobody_refers_to_go", splits::elements_that_nobody_refers_to_go),
        ("tasks_submit_tasks_in_parts", splits::tasks_submit_tasks_in_parts),
        ("elements_fail_as_their_task_does", splits::elements_fail_as_their_task_does),
        ("a_lost_element_is_made_again", splits::a_lost_element_is_made_again),
        ("items_are_taken_while_their_task_runs", streams::items_are_taken_while_their_task_runs),
        ("a_long_stream_takes_no_more_than_its_window", streams::a_long_stream_takes_no_more_than_its_window),
        (
            "streams_end_with_their_failure_after_their_items",
            streams::streams_end_with_their_failure_after_their_items,
        ),
        ("a_stream_that_is_dropped_or_cancelled_ends", streams::a_stream_that_is_dropped_or_cancelled_ends),
        (
            "a_stream_goes_on_when_its_worker_or_node_dies",
            streams::a_stream_goes_on_when_its_worker_or_node_dies,
        ),
        ("another_attempt_must_make_the_same_items", streams::another_attempt_must_make_the_same_items),
        (
            "items_may_hold_references_and_tasks_may_take_streams",
            streams::items_may_hold_references_and_tasks_may_take_streams,
        ),
        (
            "streams_of_a_driver_that_is_gone_leave_nothing",
            streams::streams_of_a_driver_that_is_gone_leave_nothing,
        ),
        ("slots_move_under_a_job", slots_move_under_a_job),
    ];
    let only = std::env::args().nth(1).filter(|a| !a.starts_with('-'));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in tests {
        if only.as_ref().is_some_and(|o| !name.contains(o.as_str())) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| test(&cluster))) {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
        println!("test {name} ended");
    }
    cluster.end();
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
