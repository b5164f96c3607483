//! Who refers to what, with real processes: owners, borrowers and whole nodes die, and what somebody
//! refers to is still there or is made again; what nobody refers to leaves no trace.
//!
//! Every node daemon is a process of its own, so that it can be killed. The test binary serves as node
//! and as worker binary, so it has a `main` of its own.

use mobula::{Blob, Client, ConnectOptions, Error, FailureKind, ObjectRef, OnDivergence, remote};
use mobula_gcs::{Head, HeadConfig, Parts as HeadParts};
use mobula_net::tcp::TcpNet;
use mobula_node::NodeConfig;
use mobula_proto::LEVEL_REFERENCES;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const SOON: Duration = Duration::from_secs(30);
/// Names what a process that is to be a node is told: heads, socket, resource.
const NODE_VARIABLE: &str = "MOBULA_TEST_NODE";
/// Objects of this size lie in shared memory.
const LARGE: usize = 300_000;

#[remote]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[remote]
fn fill(len: usize, byte: u8) -> Blob {
    vec![byte; len].into()
}

/// Whether a large value is of this byte alone.
#[remote]
fn consists_of(blob: Blob, byte: u8) -> bool {
    blob.iter().all(|b| *b == byte)
}

/// Its parameters are called as what the macro itself makes: it must not matter.
#[remote]
fn named(args: u64, reader: u64) -> u64 {
    args + reader
}

#[remote]
fn length(blob: Blob) -> usize {
    blob.len()
}

#[remote]
fn put_large(byte: u8) -> Result<ObjectRef<Blob>, Error> {
    mobula::current().put(&Blob::from(vec![byte; LARGE]))
}

/// The same, and which worker did it.
#[remote]
fn put_and_sign(byte: u8) -> Result<(u32, ObjectRef<Blob>), Error> {
    Ok((std::process::id(), mobula::current().put(&Blob::from(vec![byte; LARGE]))?))
}

/// Puts a large value and dies the first time; `marker` tells the times apart.
#[remote]
fn put_and_die_once(marker: String, byte: u8) -> Result<ObjectRef<Blob>, Error> {
    let put = mobula::current().put(&Blob::from(vec![byte; LARGE]))?;
    // The node daemon has heard of it once it has answered this.
    add::remote(1, 1).get()?;
    if std::fs::create_dir(&marker).is_ok() {
        std::process::abort();
    }
    Ok(put)
}

/// Puts a large value, and a reference to it into another.
#[remote]
fn put_nested(byte: u8) -> Result<ObjectRef<Vec<ObjectRef<Blob>>>, Error> {
    let inner = mobula::current().put(&Blob::from(vec![byte; LARGE]))?;
    mobula::current().put(&vec![inner])
}

/// Submits a task of its own node and returns the reference to what that makes.
#[remote]
fn hand_on(byte: u8, resource: String) -> ObjectRef<Blob> {
    mobula::current().submit(fill::task(LARGE, byte).resource(&resource, 1.0))
}

/// More than twice as large as what it refers to.
#[derive(Serialize, Deserialize)]
struct Container {
    weight: Blob,
    inner: ObjectRef<Blob>,
}

#[remote]
fn wrap(byte: u8) -> Container {
    Container { weight: vec![0; 3 * LARGE].into(), inner: fill::remote(LARGE, byte) }
}

#[remote]
fn length_inside(container: Container) -> Result<usize, Error> {
    let inner = container.inner.clone();
    drop(container);
    Ok(inner.get()?.len())
}

/// Never the same twice.
#[remote]
fn dice() -> Result<Blob, std::io::Error> {
    let mut bytes = vec![0; LARGE];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.into())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Runs a node until it is killed, if this process was started for that.
fn run_node_if_asked() {
    let Ok(told) = std::env::var(NODE_VARIABLE) else { return };
    let told: Vec<&str> = told.split('|').collect();
    let [head, socket, resource] = told[..] else { panic!("three things are told") };
    let config = NodeConfig {
        name: format!("node-{resource}"),
        heads: vec![head.to_owned()],
        listen: "127.0.0.1:0".into(),
        socket: PathBuf::from(socket),
        workers: 2,
        resources: vec![(resource.to_owned(), 4.0)],
        labels: Vec::new(),
        store_bytes: 64 << 20,
        linger: mobula_node::LINGER,
        late: Duration::ZERO,
        spill_dir: None,
        packages_dir: None,
        memory_full: 1.0,
        pages: Default::default(),
        seed: u64::from(std::process::id()),
    };
    let ready = |ready: mobula_node::Ready| {
        println!("{}", ready.address);
    };
    let node = mobula_node::run(config, Arc::new(TcpNet), ready, std::future::pending());
    runtime().block_on(node).expect("the node runs");
    std::process::exit(0);
}

/// A node that offers a resource of its own name.
struct Node {
    process: Child,
    address: String,
    socket: PathBuf,
}

impl Node {
    fn start(dir: &Path, head: &str, name: &str) -> Self {
        let socket = dir.join(format!("{name}-{}.sock", dir.read_dir().expect("is there").count()));
        let resource = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let mut process = Command::new(std::env::current_exe().expect("known"))
            .env(NODE_VARIABLE, format!("{head}|{}|{resource}", socket.display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut address = String::new();
        let out = process.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut address).expect("it says where it listens");
        Node { process, address: address.trim().to_owned(), socket }
    }

    /// As `kill -9`: its workers go with it.
    fn kill(mut self) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
    }

    /// What Prometheus reads.
    fn metrics(&self) -> String {
        let mut stream = std::net::TcpStream::connect(&self.address).expect("listening");
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        answer
    }

    /// The sum of all samples whose lines begin so.
    fn count(&self, metric: &str) -> u64 {
        let answer = self.metrics();
        let samples: Vec<u64> = answer
            .lines()
            .filter_map(|line| line.strip_prefix(metric))
            .filter(|rest| rest.starts_with([' ', '{']))
            .map(|rest| rest.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number"))
            .collect();
        assert!(!samples.is_empty(), "no {metric} in {answer}");
        samples.into_iter().sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

struct Cluster {
    dir: PathBuf,
    head: String,
    home: Node,
    stop: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Cluster {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("mobula-references-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let head_dir = dir.join("head");
        let thread = std::thread::spawn(move || {
            let disk = Arc::new(mobula_base::disk::RealDisk::new(head_dir).expect("a directory"));
            runtime().block_on(mobula_gcs::in_scope(1, async move {
                let parts = HeadParts::new(Arc::new(TcpNet), disk);
                let head = Head::start(HeadConfig::default(), parts).await.expect("the head starts");
                tell.send(head.address().to_owned()).expect("the test waits");
                let _ = head.run_until_shutdown(async { drop(stopped.await) }).await;
            }));
        });
        let head = told.recv_timeout(SOON).expect("a head");
        // References of a job are counted from its start on, or never.
        until("the head reads all formats", || {
            status(&head).view.is_some_and(|view| view.level >= LEVEL_REFERENCES)
        });
        let home = Node::start(&dir, &head, "home");
        Cluster { dir, head, home, stop, thread }
    }

    /// A node that offers the resource `name`; digits at the end tell lives apart.
    fn node(&self, name: &str) -> Node {
        Node::start(&self.dir, &self.head, name)
    }

    fn connect(&self, on_divergence: OnDivergence) -> Client {
        let options = ConnectOptions {
            socket: self.home.socket.clone(),
            job_name: "references".into(),
            on_divergence,
            ..Default::default()
        };
        Client::connect(options).expect("the daemon answers")
    }

    /// Lineage records in the control store.
    fn records(&self) -> u64 {
        status(&self.head).shards.iter().map(|shard| shard.tasks).sum()
    }

    fn end(self) {
        drop(self.home);
        let _ = self.stop.send(());
        self.thread.join().expect("it ends cleanly");
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn status(head: &str) -> mobula_proto::StatusReply {
    runtime().block_on(async {
        let client = mobula_gcs::Client::new(Arc::new(TcpNet), vec![head.to_owned()], 7);
        client.status_of(head).await.expect("it answers")
    })
}

/// Polls until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let late = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < late, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_of(blob: &Blob, byte: u8) -> bool {
    blob.len() == LARGE && blob.iter().all(|b| *b == byte)
}

/// Every lineage record and done-record of this node's tasks is committed.
fn settle(node: &Node) {
    until("all is committed", || {
        node.count("mobula_lineage_unacknowledged") == 0 && node.count("mobula_tasks") == 0
    });
}

fn a_put_outlives_the_worker_that_put_it(c: &Cluster) {
    let client = c.connect(OnDivergence::Fail);
    let (worker, put) = client.submit(put_and_sign::task(7)).get_timeout(SOON).expect("runs");
    let killed = Command::new("kill").args(["-9", &worker.to_string()]).status().expect("kill runs");
    assert!(killed.success());
    until("the worker is gone", || !Path::new(&format!("/proc/{worker}/fd/0")).exists());
    assert!(is_of(&put.get_timeout(SOON).expect("is there"), 7));
    assert_eq!(client.submit(length::task(&put)).get_timeout(SOON).expect("others read it, too"), LARGE);
    // One whose task did not end is put again.
    let marker = c.dir.join("died").display().to_string();
    let again = client.submit(put_and_die_once::task(marker, 8)).get_timeout(SOON).expect("runs again");
    assert!(is_of(&again.get_timeout(SOON).expect("is there"), 8));
    client.end(true).expect("the job ends");
}

fn a_nested_reference_outlives_its_parents_node(c: &Cluster) {
    let there = c.node("there1");
    let client = c.connect(OnDivergence::Fail);
    let parent = client.submit(hand_on::task(5, "there".to_owned()).resource("there", 1.0));
    let inner = parent.get_timeout(SOON).expect("runs");
    assert!(client.wait(std::slice::from_ref(&inner), 1, SOON)[0]);
    settle(&there);
    drop(parent);
    settle(&c.home);
    there.kill();
    let again = c.node("there2");
    assert!(is_of(&inner.get_timeout(SOON).expect("is made again"), 5));
    client.end(true).expect("the job ends");
    drop(again);
}

fn a_borrowed_reference_outlives_what_it_came_in(c: &Cluster) {
    let client = c.connect(OnDivergence::Fail);
    let container = client.submit(wrap::task(9));
    // A task borrows what lies inside its argument.
    let read = client.submit(length_inside::task(&container));
    assert_eq!(read.get_timeout(SOON).expect("runs"), LARGE);
    let taken = container.get_timeout(SOON).expect("is here").inner;
    drop((container, read));
    let used = || c.home.count("mobula_object_store_used_bytes") as usize;
    until("the container's memory is free", || used() < 2 * LARGE);
    assert!(is_of(&taken.get_timeout(SOON).expect("is still there"), 9));
    assert_eq!(client.submit(length::task(&taken)).get_timeout(SOON).expect("for others, too"), LARGE);
    drop(taken);
    until("its memory is free, too", || used() == 0);
    client.end(true).expect("the job ends");
}

fn a_tasks_put_is_made_again_by_its_task(c: &Cluster) {
    let there = c.node("there1");
    let client = c.connect(OnDivergence::Fail);
    let put = client.submit(put_large::task(6).resource("there", 1.0)).get_timeout(SOON).expect("runs");
    let nested = client.submit(put_nested::task(8).resource("there", 1.0)).get_timeout(SOON).expect("runs");
    settle(&there);
    settle(&c.home);
    there.kill();
    let again = c.node("there2");
    assert!(is_of(&put.get_timeout(SOON).expect("is put again"), 6));
    let inner = nested.get_timeout(SOON).expect("is put again").remove(0);
    drop(nested);
    assert!(is_of(&inner.get_timeout(SOON).expect("with what it refers to"), 8));
    client.end(true).expect("the job ends");
    drop(again);
}

fn a_drivers_put_outlives_its_nodes_neighbour(c: &Cluster) {
    let there = c.node("there1");
    let client = c.connect(OnDivergence::Fail);
    let put = client.put(&Blob::from(vec![4; LARGE])).expect("stored");
    until("there is a second copy", || there.count("mobula_object_store_used_bytes") as usize >= LARGE);
    there.kill();
    let again = c.node("there2");
    assert!(is_of(&put.get_timeout(SOON).expect("is here"), 4));
    let far = client.submit(length::task(&put).resource("there", 1.0));
    assert_eq!(far.get_timeout(SOON).expect("crosses over"), LARGE);
    client.end(true).expect("the job ends");
    drop(again);
}

fn what_diverges_fails_or_is_accepted(c: &Cluster) {
    for on_divergence in [OnDivergence::Fail, OnDivergence::Accept] {
        let there = c.node("there1");
        let client = c.connect(on_divergence);
        let made = client.submit(dice::task().resource("there", 1.0));
        assert!(client.wait(std::slice::from_ref(&made), 1, SOON)[0]);
        settle(&there);
        settle(&c.home);
        there.kill();
        let again = c.node("there2");
        match (made.get_timeout(SOON), on_divergence) {
            (Err(Error::Task { kind: FailureKind::FailureDiverged, message, .. }), OnDivergence::Fail) => {
                assert!(message.contains("deterministic"), "{message}");
            }
            (Ok(first), OnDivergence::Accept) => {
                assert_eq!(made.get_timeout(SOON).expect("is here"), first, "one value from here on");
                let elsewhere = client.submit(length::task(&made).resource("there", 1.0));
                assert_eq!(elsewhere.get_timeout(SOON).expect("runs"), LARGE);
            }
            (other, _) => panic!("{on_divergence:?} gave {:?}", other.map(|blob| blob.len())),
        }
        client.end(true).expect("the job ends");
        drop(again);
    }
}

/// A little of everything that makes objects, every value looked at and dropped.
fn make_much(client: &Client) {
    for n in 0..2000 {
        drop(client.submit(add::task(n, 1)));
    }
    let sums: Vec<_> = (0..500).map(|n| client.submit(named::task(n, 2))).collect();
    for (n, sum) in sums.iter().enumerate() {
        assert_eq!(sum.get_timeout(SOON).expect("runs"), n as u64 + 2);
    }
    for n in 0..20 {
        let (here, far) = if n % 2 == 0 { ("home", "there") } else { ("there", "home") };
        let blob = client.submit(fill::task(LARGE, n).resource(here, 1.0));
        let read = client.submit(length::task(&blob).resource(far, 1.0));
        assert_eq!(read.get_timeout(SOON).expect("runs"), LARGE);
    }
    let large = client.put(&Blob::from(vec![1; LARGE])).expect("stored");
    let outer = client.put(&vec![large]).expect("stored");
    assert!(is_of(&outer.get_timeout(SOON).expect("is there")[0].get_timeout(SOON).expect("as well"), 1));
    for place in ["home", "there"] {
        let nested = client.submit(put_nested::task(2).resource(place, 1.0)).get_timeout(SOON).expect("runs");
        let inner = nested.get_timeout(SOON).expect("is there").remove(0);
        assert!(is_of(&inner.get_timeout(SOON).expect("is there"), 2));
        let handed = client.submit(hand_on::task(3, place.to_owned()).resource(place, 1.0));
        let handed = handed.get_timeout(SOON).expect("runs");
        assert!(is_of(&handed.get_timeout(SOON).expect("is there"), 3));
        let wrapped = client.submit(wrap::task(4).resource(place, 1.0));
        let read = client.submit(length_inside::task(&wrapped));
        assert_eq!(read.get_timeout(SOON).expect("runs"), LARGE);
    }
}

/// What a node counts none of when nobody refers to anything.
const EMPTIED: [&str; 6] = [
    "mobula_tasks",
    "mobula_task_attempts",
    "mobula_objects_known",
    "mobula_objects",
    "mobula_object_store_used_bytes",
    "mobula_lineage_unacknowledged",
];

fn memory_returns_to_its_baseline(c: &Cluster) {
    let there = c.node("there1");
    let client = c.connect(OnDivergence::Fail);
    for _ in 0..3 {
        make_much(&client);
        for node in [&c.home, &there] {
            let emptied = catch_unwind(AssertUnwindSafe(|| {
                for metric in EMPTIED {
                    until(&format!("{metric} is 0"), || node.count(metric) == 0);
                }
            }));
            assert!(emptied.is_ok(), "{} has {}", node.socket.display(), node.metrics());
        }
        until("no record is left", || c.records() == 0);
    }
    client.end(true).expect("the job ends");
}

/// Six times what the store can hold comes and goes; whoever still looks sees what was there.
fn memory_is_used_again_and_values_stay_what_they_are(c: &Cluster) {
    let client = c.connect(OnDivergence::Fail);
    for round in 0..25u8 {
        let values: Vec<_> = (0..16)
            .map(|n| (n * 16 + round % 16, client.submit(fill::task(1 << 20, n * 16 + round % 16))))
            .collect();
        let (mut seen, mut kept) = (Vec::new(), Vec::new());
        for (byte, value) in values {
            seen.push(client.submit(consists_of::task(&value, byte)));
            if byte % 4 == 0 {
                kept.push((byte, value));
            }
        }
        for (byte, value) in kept {
            assert!(value.get_timeout(SOON).expect("is there").iter().all(|b| *b == byte));
        }
        for seen in seen {
            assert!(seen.get_timeout(SOON).expect("runs"), "a value has changed");
        }
    }
    client.end(true).expect("the job ends");
}

/// A story and its name.
type Test = (&'static str, fn(&Cluster));

fn main() {
    mobula::run_worker_if_asked();
    run_node_if_asked();
    let cluster = Cluster::start();
    let tests: [Test; 8] = [
        // First: records of a job that has ended stay for a minute.
        ("memory_returns_to_its_baseline", memory_returns_to_its_baseline),
        (
            "memory_is_used_again_and_values_stay_what_they_are",
            memory_is_used_again_and_values_stay_what_they_are,
        ),
        ("a_put_outlives_the_worker_that_put_it", a_put_outlives_the_worker_that_put_it),
        ("a_nested_reference_outlives_its_parents_node", a_nested_reference_outlives_its_parents_node),
        ("a_borrowed_reference_outlives_what_it_came_in", a_borrowed_reference_outlives_what_it_came_in),
        ("a_tasks_put_is_made_again_by_its_task", a_tasks_put_is_made_again_by_its_task),
        ("a_drivers_put_outlives_its_nodes_neighbour", a_drivers_put_outlives_its_nodes_neighbour),
        ("what_diverges_fails_or_is_accepted", what_diverges_fails_or_is_accepted),
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
