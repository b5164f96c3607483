//! Programs that make more than shared memory holds, with real processes: nothing is refused that can ever
//! be done, everything is read back as it was made, and what lies in files outlives its node daemon.
//!
//! Every node daemon is a process of its own, so that it can be killed. The test binary serves as node
//! and as worker binary, so it has a `main` of its own.

use mobula::{Blob, Client, ConnectOptions, Error, FailureKind, ObjectRef, remote};
use mobula_gcs::{Head, HeadConfig, Parts as HeadParts};
use mobula_net::tcp::TcpNet;
use mobula_node::NodeConfig;
use mobula_proto::LEVEL_REFERENCES;
use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const SOON: Duration = Duration::from_secs(60);
/// Names what a process that is to be a node is told: heads, directory, resource.
const NODE_VARIABLE: &str = "MOBULA_TEST_NODE";
const STORE: usize = 64 << 20;
const LARGE: usize = 5 << 20;
/// Memory of 1.1 times this must do.
const LARGEST: usize = 58 << 20;

#[remote]
fn fill(len: usize, byte: u8) -> Blob {
    vec![byte; len].into()
}

/// As `fill`, and leaves a mark for each time it ran.
#[remote]
fn fill_marked(len: usize, byte: u8, marks: String) -> Result<Blob, std::io::Error> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(marks)?;
    file.write_all(b"x")?;
    Ok(vec![byte; len].into())
}

#[remote]
fn consists_of(blob: Blob, byte: u8) -> bool {
    blob.iter().all(|b| *b == byte)
}

/// Takes two large values and makes a third.
#[remote]
fn mix(a: Blob, b: Blob) -> Blob {
    a.iter().zip(b.iter()).map(|(a, b)| a ^ b).collect::<Vec<u8>>().into()
}

/// Puts ten large values and returns what they are called.
#[remote]
fn put_many(first: u8) -> Result<Vec<ObjectRef<Blob>>, Error> {
    let client = mobula::current();
    (first..first + 10).map(|byte| client.put(&Blob::from(vec![byte; LARGE]))).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Runs a node until it is killed, if this process was started for that.
fn run_node_if_asked() {
    let Ok(told) = std::env::var(NODE_VARIABLE) else { return };
    let told: Vec<&str> = told.split('|').collect();
    let [head, dir, resource] = told[..] else { panic!("three things are told") };
    let dir = PathBuf::from(dir);
    let config = NodeConfig {
        name: format!("node-{resource}"),
        heads: vec![head.to_owned()],
        listen: "127.0.0.1:0".into(),
        socket: dir.join("node.sock"),
        workers: 2,
        resources: vec![(resource.to_owned(), 4.0)],
        labels: Vec::new(),
        store_bytes: STORE as u64,
        linger: mobula_node::LINGER,
        late: Duration::ZERO,
        spill_dir: Some(dir.join("spill")),
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

/// A node that offers a resource of its own name, and keeps its files in a directory of its own.
struct Node {
    process: Child,
    address: String,
    dir: PathBuf,
}

impl Node {
    fn start(dir: &Path, head: &str, name: &str) -> Self {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let mut process = Command::new(std::env::current_exe().expect("known"))
            .env(NODE_VARIABLE, format!("{head}|{}|{name}", dir.display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut address = String::new();
        let out = process.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut address).expect("it says where it listens");
        Node { process, address: address.trim().to_owned(), dir }
    }

    fn spill_dir(&self) -> PathBuf {
        self.dir.join("spill")
    }

    /// The files of objects that have left its memory.
    fn files(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.spill_dir()) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut files: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|e| e == "spill")).collect();
        files.sort();
        files
    }

    /// The sum of all samples whose lines begin so.
    fn count(&self, metric: &str) -> u64 {
        let mut stream = std::net::TcpStream::connect(&self.address).expect("listening");
        let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
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
        let dir = std::env::temp_dir().join(format!("mobula-spill-{}", std::process::id()));
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
        until("the head reads all formats", || level(&head) >= LEVEL_REFERENCES);
        let home = Node::start(&dir, &head, "home");
        Cluster { dir, head, home, stop, thread }
    }

    fn node(&self, name: &str) -> Node {
        Node::start(&self.dir, &self.head, name)
    }

    fn connect(&self) -> Client {
        let socket = self.home.dir.join("node.sock");
        let options = ConnectOptions { socket, job_name: "test".into(), ..Default::default() };
        Client::connect(options).expect("the daemon answers")
    }

    fn end(self) {
        drop(self.home);
        let _ = self.stop.send(());
        self.thread.join().expect("it ends cleanly");
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn level(head: &str) -> u32 {
    let client = mobula_gcs::Client::new(Arc::new(TcpNet), vec![head.to_owned()], 1);
    let view = runtime().block_on(async {
        client.connect(SOON).await.ok()?;
        client.watch(0, Duration::ZERO, SOON).await.ok()
    });
    view.map_or(0, |view| view.level)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn check(reference: &ObjectRef<Blob>, len: usize, byte: u8) {
    let value = reference.get_timeout(SOON).expect("it is there");
    assert_eq!(value.len(), len);
    assert!(value.iter().all(|b| *b == byte), "a value has changed");
}

fn emptied(node: &Node) {
    until("no memory is used", || node.count("mobula_object_store_used_bytes") == 0);
    until("no file is left", || node.files().is_empty() && node.count("mobula_objects_spilled") == 0);
}

/// A gigabyte of results in a store of 64 MB, all of them referred to, and one that almost fills it.
fn results_that_find_no_room_go_to_files_and_come_back(c: &Cluster) {
    let client = c.connect();
    let made: Vec<_> = (0..200u8).map(|byte| client.submit(fill::task(LARGE, byte))).collect();
    let largest = client.submit(fill::task(LARGEST, 77));
    let all = client.wait(&made, made.len(), SOON);
    assert!(all.into_iter().all(|is_made| is_made));
    check(&largest, LARGEST, 77);
    assert!(c.home.count("mobula_objects_spilled") > 180);
    let (bytes, stored) = ("mobula_object_store_spilled_bytes", "mobula_object_store_spill_file_bytes");
    assert!(
        c.home.count(stored) * 100 < c.home.count(bytes),
        "each is one byte again and again: it is packed"
    );
    assert_eq!(c.home.count("mobula_object_spill_failures_total"), 0);
    // In another order, by tasks, by pairs of them, and by the driver.
    let seen: Vec<_> =
        (0..200u8).rev().map(|byte| client.submit(consists_of::task(&made[byte as usize], byte))).collect();
    let mixed: Vec<_> = (0..50usize).map(|n| client.submit(mix::task(&made[n], &made[199 - n]))).collect();
    for seen in seen {
        assert!(seen.get_timeout(SOON).expect("runs"), "a value has changed");
    }
    for (n, mixed) in mixed.iter().enumerate() {
        check(mixed, LARGE, n as u8 ^ (199 - n as u8));
    }
    for byte in (0..200u8).step_by(7) {
        check(&made[byte as usize], LARGE, byte);
    }
    check(&largest, LARGEST, 77);
    drop((made, mixed, largest));
    emptied(&c.home);
    client.end(true).expect("the job ends");
}

fn puts_wait_for_room_too(c: &Cluster) {
    let client = c.connect();
    let puts: Vec<_> = (0..30u8)
        .map(|byte| client.put(&Blob::from(vec![byte; LARGE])).expect("there is room in the end"))
        .collect();
    let inside = client.submit(put_many::task(100));
    for (byte, put) in puts.iter().enumerate() {
        check(put, LARGE, byte as u8);
    }
    let taken = inside.get_timeout(SOON).expect("runs");
    for (n, put) in taken.iter().enumerate() {
        check(put, LARGE, 100 + n as u8);
    }
    drop((puts, inside, taken));
    emptied(&c.home);
    client.end(true).expect("the job ends");
}

fn what_can_never_fit_is_refused_at_once(c: &Cluster) {
    let client = c.connect();
    let too_large = client.put(&Blob::from(vec![0; STORE + 1])).map(|_| ());
    let Err(Error::Task { kind, message, .. }) = too_large else { panic!("larger than the store") };
    assert_eq!(kind, FailureKind::FailureStoreFull);
    assert!(message.contains("can never fit") && message.contains("--store"), "{message}");
    // Each fits, both together do not: the task says so.
    let (a, b) = (client.submit(fill::task(STORE / 2 + 1, 1)), client.submit(fill::task(STORE / 2 + 1, 2)));
    let both = client.submit(mix::task(&a, &b)).get_timeout(SOON).map(|_| ());
    let Err(Error::Task { kind, message, .. }) = both else { panic!("more than the store") };
    assert_eq!(kind, FailureKind::FailureStoreFull, "{message}");
    assert!(message.contains("arguments"), "{message}");
    drop((a, b));
    emptied(&c.home);
    client.end(true).expect("the job ends");
}

fn a_damaged_file_is_a_lost_copy_and_made_again(c: &Cluster) {
    let client = c.connect();
    let marks = c.dir.join("damage-marks").display().to_string();
    let made: Vec<_> =
        (0..20u8).map(|byte| client.submit(fill_marked::task(LARGE, byte, marks.clone()))).collect();
    client.wait(&made, made.len(), SOON);
    until("some lie in files", || c.home.files().len() >= 9);
    let files = c.home.files();
    for file in &files {
        let mut bytes = std::fs::read(file).expect("a file");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        // In place: as the disk does it.
        std::fs::write(file, bytes).expect("written");
    }
    for (byte, made) in made.iter().enumerate() {
        check(made, LARGE, byte as u8);
    }
    let ran = std::fs::metadata(&marks).expect("marks").len() as usize;
    assert!(ran > 20 && ran <= 20 + files.len(), "{ran} times, {} files damaged", files.len());
    drop(made);
    emptied(&c.home);
    client.end(true).expect("the job ends");
}

fn a_disk_that_fails_lets_producers_wait_and_loses_nothing(c: &Cluster) {
    let client = c.connect();
    // Whatever is written there fails: nobody makes the directory again.
    let (dir, away) = (c.home.spill_dir(), c.home.dir.join("away"));
    std::fs::rename(&dir, &away).expect("moved");
    let made: Vec<_> = (0..24u8).map(|byte| client.submit(fill::task(LARGE, byte))).collect();
    until("the disk took a file no more", || c.home.count("mobula_object_spill_failures_total") > 0);
    until("somebody waits", || c.home.count("mobula_object_store_waiting") > 0);
    let ready = client.wait(&made, made.len(), Duration::ZERO);
    assert!(!ready.into_iter().all(|is_made| is_made), "there is no room for all");
    std::fs::rename(&away, &dir).expect("moved back");
    for (byte, made) in made.iter().enumerate() {
        check(made, LARGE, byte as u8);
    }
    drop(made);
    emptied(&c.home);
    client.end(true).expect("the job ends");
}

fn files_outlive_their_node_daemon(c: &Cluster) {
    let mut there = c.node("there");
    let client = c.connect();
    let marks = c.dir.join("restart-marks").display().to_string();
    let made: Vec<_> = (0..30u8)
        .map(|byte| client.submit(fill_marked::task(LARGE, byte, marks.clone()).resource("there", 1.0)))
        .collect();
    let all = client.wait(&made, made.len(), SOON);
    assert!(all.into_iter().all(|is_made| is_made));
    until("most lie in files", || there.files().len() >= 18);
    // As a power cut does it.
    there.process.kill().expect("it runs");
    there.process.wait().expect("it ends");
    let kept = there.files().len();
    drop(there);
    let there = c.node("there");
    until("it has taken up its files", || there.count("mobula_objects_spilled") == kept as u64);
    // Those that were in memory alone are made again there; no other.
    for (byte, made) in made.iter().enumerate() {
        check(made, LARGE, byte as u8);
    }
    let ran = std::fs::metadata(&marks).expect("marks").len() as usize;
    assert_eq!(ran, 30 + (30 - kept), "{kept} had files");
    drop(made);
    emptied(&there);
    emptied(&c.home);
    client.end(true).expect("the job ends");
}

fn files_of_jobs_that_have_ended_go_with_the_next_start(c: &Cluster) {
    let there = c.node("later");
    let client = c.connect();
    let made: Vec<_> =
        (0..20u8).map(|byte| client.submit(fill::task(LARGE, byte).resource("later", 1.0))).collect();
    client.wait(&made, made.len(), SOON);
    until("some lie in files", || there.files().len() >= 9);
    drop(there);
    client.end(true).expect("the job ends");
    let there = c.node("later");
    until("its files are gone", || there.files().is_empty());
    drop(made);
    emptied(&c.home);
}

/// A story and its name.
type Test = (&'static str, fn(&Cluster));

fn main() {
    mobula::run_worker_if_asked();
    run_node_if_asked();
    let cluster = Cluster::start();
    let tests: [Test; 7] = [
        (
            "results_that_find_no_room_go_to_files_and_come_back",
            results_that_find_no_room_go_to_files_and_come_back,
        ),
        ("puts_wait_for_room_too", puts_wait_for_room_too),
        ("what_can_never_fit_is_refused_at_once", what_can_never_fit_is_refused_at_once),
        ("a_damaged_file_is_a_lost_copy_and_made_again", a_damaged_file_is_a_lost_copy_and_made_again),
        (
            "a_disk_that_fails_lets_producers_wait_and_loses_nothing",
            a_disk_that_fails_lets_producers_wait_and_loses_nothing,
        ),
        ("files_outlive_their_node_daemon", files_outlive_their_node_daemon),
        (
            "files_of_jobs_that_have_ended_go_with_the_next_start",
            files_of_jobs_that_have_ended_go_with_the_next_start,
        ),
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
