//! How many tasks there are in a second, and how soon one is done.

use super::{Bench, SECONDS, percentiles, settle};
use crate::bench::table::Aim;
use crate::exit::Failure;
use mobula::{Client, ObjectRef};
use std::collections::VecDeque;
use std::time::Instant;

/// Repetitions of what is timed singly.
pub const SINGLY: usize = 2_000;
/// Tasks in flight at once.
pub const IN_FLIGHT: usize = 10_000;
/// Submitting threads of the row that has many.
const THREADS: usize = 16;
/// Tasks whose references are all held until their records are durable, before the next.
const HELD: usize = 50_000;

const ASYNC: Aim = Aim::AtLeast(1e6);
const COMMITTED: Aim = Aim::AtLeast(250e3);
const P50_US: Aim = Aim::AtMost(80.0);
const P99_US: Aim = Aim::AtMost(300.0);

/// What a no-op task returns.
const OK: [u8; 2] = *b"ok";

/// Ray's no-op.
#[mobula::remote]
pub fn small_value() -> [u8; 2] {
    OK
}

/// Whether a no-op returned what it returns.
pub fn check(value: [u8; 2]) -> Result<(), Failure> {
    if value == OK { Ok(()) } else { Err(format!("a no-op task returned {value:?}").into()) }
}

/// Submits so many tasks and waits for all; their references.
pub fn many(client: &Client, count: usize) -> Result<Vec<ObjectRef<[u8; 2]>>, Failure> {
    let refs: Vec<_> = (0..count).map(|_| client.submit(small_value::task())).collect();
    refs.iter().try_for_each(|reference| check(reference.get()?))?;
    Ok(refs)
}

/// Tasks for as long as `go_on` says, of which `in_flight` are in flight; how many there were. Each reference
/// is dropped once its value is there.
pub fn stream(client: &Client, in_flight: usize, mut go_on: impl FnMut(u64) -> bool) -> Result<u64, Failure> {
    let mut window: VecDeque<ObjectRef<[u8; 2]>> = VecDeque::with_capacity(in_flight);
    let mut count = 0;
    while go_on(count) {
        if window.len() == in_flight
            && let Some(oldest) = window.pop_front()
        {
            check(oldest.get()?)?;
        }
        window.push_back(client.submit(small_value::task()));
        count += 1;
    }
    window.into_iter().try_for_each(|reference| check(reference.get()?))?;
    Ok(count)
}

/// `submit` to `get`, one at a time.
pub fn singly(bench: &mut Bench) -> Result<(), Failure> {
    let (client, floor) = (bench.client()?, bench.floor()?);
    let mut times = Vec::with_capacity(SINGLY);
    for _ in 0..SINGLY {
        let at = Instant::now();
        check(client.submit(small_value::task()).get()?)?;
        times.push(at.elapsed());
    }
    let [p50, p99] = percentiles(&mut times);
    bench.figures.add_aimed("single client tasks sync, p50", p50, "µs", P50_US, Some(floor.p50));
    bench.figures.add_aimed("single client tasks sync, p99", p99, "µs", P99_US, Some(floor.p99));
    settle(&client).map(drop)
}

/// One thread; each reference is dropped once its task is done: records of tasks that came and went before they
/// were sent are elided.
pub fn dropped(bench: &mut Bench) -> Result<(), Failure> {
    let names = ["single client tasks async", "of their records, reached the log"];
    rate(bench, names, |client| {
        let at = Instant::now();
        stream(client, IN_FLIGHT, |_| at.elapsed() < SECONDS)
    })
}

/// The same with as many in flight, which many threads submit and get.
pub fn threads(bench: &mut Bench) -> Result<(), Failure> {
    let names = ["16 threads tasks async", "of theirs, reached the log"];
    rate(bench, names, |client| {
        let at = Instant::now();
        std::thread::scope(|scope| {
            let of_one = || stream(client, IN_FLIGHT / THREADS, |_| at.elapsed() < SECONDS);
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(of_one)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a panic ends the process's bench")).sum()
        })
    })
}

fn rate(
    bench: &mut Bench,
    [name, share]: [&'static str; 2],
    run: impl FnOnce(&Client) -> Result<u64, Failure>,
) -> Result<(), Failure> {
    let (client, floor) = (bench.client()?, bench.floor()?);
    settle(&client)?;
    let at = Instant::now();
    let count = run(&client)? as f64;
    let took = at.elapsed().as_secs_f64();
    let sent = settle(&client)? as f64;
    bench.figures.add_aimed(name, count / took, "/s", ASYNC, Some(floor.rate));
    bench.figures.add(share, sent / count * 100.0, "%");
    Ok(())
}

/// Every reference is held until its record is committed, so that nothing is elided.
pub fn held(bench: &mut Bench) -> Result<(), Failure> {
    let (client, floor) = (bench.client()?, bench.floor()?);
    settle(&client)?;
    let (at, mut count) = (Instant::now(), 0);
    while at.elapsed() < SECONDS {
        let refs = many(&client, HELD)?;
        let sent = settle(&client)?;
        if sent != refs.len() {
            return Err(format!("{sent} records of {} were made durable", refs.len()).into());
        }
        count += sent;
    }
    let rate = count as f64 / at.elapsed().as_secs_f64();
    let name = "single client tasks async, held until committed";
    bench.figures.add_aimed(name, rate, "/s", COMMITTED, Some(floor.rate));
    Ok(())
}
