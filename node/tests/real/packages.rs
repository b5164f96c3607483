//! A driver's binary and the files of its job, on a node that never saw them.

use super::{Cluster, SOON};
use mobula::{Client, ConnectOptions, Runtime, remote};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells a copy of this binary that it is to be the driver, at this socket.
const DRIVER: &str = "REAL_TEST_DRIVER";

/// The worker's binary, a variable, its directory, and what lies in a file there.
#[remote]
fn looks_around() -> Result<(String, String, String, String), String> {
    let text = |error: std::io::Error| error.to_string();
    let binary = std::env::current_exe().map_err(text)?.display().to_string();
    let here = std::env::current_dir().map_err(text)?.display().to_string();
    let greeting = std::env::var("REAL_TEST_GREETING").unwrap_or_default();
    let said = std::fs::read_to_string("data/said.txt").map_err(text)?;
    std::fs::write("notes", "a worker may write here").map_err(text)?;
    Ok((binary, greeting, here, said))
}

/// Runs as the driver if that is asked for.
pub fn drive_if_asked() {
    let Some(socket) = std::env::var_os(DRIVER) else { return };
    let socket = PathBuf::from(socket);
    let home = socket.parent().expect("a directory").to_owned();
    let runtime = Runtime {
        env: vec![("REAL_TEST_GREETING".into(), "hello".into())],
        files: vec![(home.join("extra"), "tools/extra".into())],
        working_dir: Some(home.join("shipped")),
    };
    // Replaced by another build while it runs, say. Workers start as soon as a node hears of the job: none finds
    // the driver where it lay.
    std::fs::remove_file(std::env::current_exe().expect("a path")).expect("removed");
    let client =
        Client::connect(ConnectOptions { socket, runtime, ..Default::default() }).expect("connected");
    // What was shipped has changed since.
    std::fs::write(home.join("shipped/data/said.txt"), "something else").expect("written");
    for node in [2, 1] {
        let task = looks_around::task().resource(&format!("only-{node}"), 1.0);
        let (binary, greeting, here, said) = client.submit(task).get_timeout(SOON).expect("runs");
        assert_eq!((greeting.as_str(), said.as_str()), ("hello", "as it was shipped"));
        assert!(Path::new(&here).starts_with(&home), "{here}");
        assert!(Path::new(&binary).starts_with(home.join(format!("node-{node}/packages"))), "{binary}");
    }
    client.end(true).expect("the job ends");
    std::process::exit(0)
}

pub fn a_binary_and_files_travel_to_nodes_that_never_saw_them(c: &Cluster) {
    let driver = c.dir.join("driver");
    std::fs::copy(std::env::current_exe().expect("a path"), &driver).expect("copied");
    std::fs::create_dir_all(c.dir.join("shipped/data")).expect("a directory");
    std::fs::write(c.dir.join("shipped/data/said.txt"), "as it was shipped").expect("written");
    std::fs::write(c.dir.join("extra"), "more").expect("written");
    let ended = Command::new(&driver).env(DRIVER, c.socket(1)).status().expect("started");
    assert!(ended.success(), "{ended}");
    let until = std::time::Instant::now() + SOON;
    let jobs = |n: u32| std::fs::read_dir(c.dir.join(format!("node-{n}/jobs"))).expect("there").count();
    while jobs(1) + jobs(2) > 0 {
        assert!(std::time::Instant::now() < until, "what a job had is removed when it has ended");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

pub fn a_job_with_a_wrong_runtime_is_refused(c: &Cluster) {
    let refused = |runtime: Runtime| {
        let options = ConnectOptions { socket: c.socket(1), runtime, ..Default::default() };
        Client::connect(options).map(drop).expect_err("refused").to_string()
    };
    let env = vec![("MOBULA_WORKER_TOKEN".into(), "1".into())];
    assert!(refused(Runtime { env, ..Runtime::default() }).contains("MOBULA_WORKER_TOKEN"));
    let files = vec![(c.dir.join("extra"), "../extra".into())];
    std::fs::write(c.dir.join("extra"), "more").expect("written");
    assert!(refused(Runtime { files, ..Runtime::default() }).contains("../extra"));
}
