//! What tasks leave in memory: those in flight, and those gone by.

use super::{Bench, settle, tasks};
use crate::bench::table::Aim;
use crate::exit::Failure;
use crate::process::Process;
use mobula::{Client, ObjectRef};
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};

const IN_FLIGHT: usize = 100_000;
/// In daemon and driver together.
const TASK_BYTES: Aim = Aim::AtMost(1000.0);
/// Tasks of the sequence, unless another number is asked for.
const SEQUENCE: u64 = 1_000_000;
/// From a tenth of the sequence on: what an allocator does by itself stays below this.
const GROWTH_MB: Aim = Aim::AtMost(16.0);

/// Keeps its worker busy until the other end of a socket closes.
#[mobula::remote]
fn occupy(socket: String) -> bool {
    let until_closed = || UnixStream::connect(&socket)?.read(&mut [0]);
    until_closed().is_ok()
}

/// Workers that are kept busy until this is dropped.
struct Occupied {
    _open: Vec<UnixStream>,
    done: Vec<ObjectRef<bool>>,
}

impl Occupied {
    fn all(client: &Client, socket: &std::path::Path, workers: u32) -> Result<Occupied, Failure> {
        let failed = |e: io::Error| format!("cannot keep workers busy: {e}");
        let listener = UnixListener::bind(socket).map_err(failed)?;
        let path = socket.display().to_string();
        let done = (0..workers).map(|_| client.submit(occupy::task(path.clone()))).collect();
        let open = (0..workers).map(|_| listener.accept().map(|(stream, _)| stream));
        let open = open.collect::<Result<_, _>>().map_err(failed)?;
        std::fs::remove_file(socket).map_err(failed)?;
        Ok(Occupied { _open: open, done })
    }

    /// Lets them go on.
    fn end(self) -> Result<(), Failure> {
        drop(self._open);
        for done in self.done {
            if !done.get()? {
                return Err("a worker was not kept busy".into());
            }
        }
        Ok(())
    }
}

/// Tasks that wait for a worker, their records committed: what each takes in the daemon and in this process.
pub fn in_flight(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    let socket = bench.running.as_ref().expect("started").cluster.dir().join("busy.sock");
    let occupied = Occupied::all(&client, &socket, super::super::WORKERS)?;
    settle(&client)?;
    let (daemon, _) = bench.daemons();
    let processes = [daemon, Process::current()];
    let before = processes.map(Process::resident_bytes);
    let refs: Vec<_> = (0..IN_FLIGHT).map(|_| client.submit(tasks::small_value::task())).collect();
    settle(&client)?;
    let after = processes.map(Process::resident_bytes);
    if client.wait(&refs[..1], 1, std::time::Duration::ZERO) != [false] {
        return Err("a task was done while all workers were busy".into());
    }
    let [of_daemon, of_driver] = [0, 1].map(|at| grown(before[at], after[at]) / IN_FLIGHT as f64);
    let name = "100,000 tasks in flight, each in daemon and driver";
    bench.figures.add_aimed(name, of_daemon + of_driver, "B", TASK_BYTES, None);
    bench.figures.add("of this, in the daemon", of_daemon, "B");
    occupied.end()?;
    refs.iter().try_for_each(|reference| tasks::check(reference.get()?))?;
    drop(refs);
    settle(&client).map(drop)
}

/// A long sequence of tasks, each forgotten when it is done: what memory grows after its first tenth.
pub fn growth(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    let count = bench.args.tasks.unwrap_or(SEQUENCE);
    let (daemon, heads) = bench.daemons();
    let ours = [daemon, Process::current()];
    tasks::stream(&client, tasks::IN_FLIGHT, |done| lasts(&client, done, count / 10))?;
    settle(&client)?;
    let resident = |all: &[Process]| all.iter().map(|process| process.resident_bytes()).sum::<u64>();
    let before = [resident(&ours), resident(&heads)];
    tasks::stream(&client, tasks::IN_FLIGHT, |done| lasts(&client, done, count - count / 10))?;
    settle(&client)?;
    let grown_mb = |before: u64, all: &[Process]| grown(before, resident(all)) / 1e6;
    let (ours, heads) = (grown_mb(before[0], &ours), grown_mb(before[1], &heads));
    bench.figures.add("tasks in a long sequence", count as f64, "");
    bench.figures.add_aimed("growth of daemon and driver meanwhile", ours, "MB", GROWTH_MB, None);
    bench.figures.add("growth of the three heads meanwhile", heads, "MB");
    Ok(())
}

/// Whether a sequence goes on; what was acknowledged is taken now and then, so that it does not pile up.
fn lasts(client: &Client, done: u64, count: u64) -> bool {
    if done.is_multiple_of(1 << 14) {
        client.take_committed();
    }
    done < count
}

/// Bytes more than before; a process may have given some back.
fn grown(before: u64, after: u64) -> f64 {
    after.saturating_sub(before) as f64
}
