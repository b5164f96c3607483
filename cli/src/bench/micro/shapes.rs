//! Tasks that need each other, and waiting for many.

use super::{Bench, median_of, settle, tasks};
use crate::bench::table::Aim;
use crate::exit::Failure;
use mobula::{Many, ObjectRef};
use std::time::{Duration, Instant};

const LINKS: u64 = 1_000;
const HOP_US: Aim = Aim::AtMost(15.0);
const FAN: u64 = 10_000;
const FAN_MS: Aim = Aim::AtMost(10.0);
const WAITED: usize = 1_000;
const WAIT_MS: Aim = Aim::AtMost(20.0);
/// How long one `wait` may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[mobula::remote]
fn next(value: u64) -> u64 {
    value + 1
}

#[mobula::remote]
fn sum(values: Many<u64>) -> u64 {
    values.0.iter().sum()
}

/// A thousand tasks, each with the value of the one before, all submitted before the first is done.
pub fn chain(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    let took = median_of(|| {
        let at = Instant::now();
        let mut last = client.submit(next::task(0));
        for _ in 1..LINKS {
            last = client.submit(next::task(&last));
        }
        match last.get()? {
            LINKS => Ok(at.elapsed()),
            other => Err(format!("a chain of {LINKS} came to {other}").into()),
        }
    })?;
    let hop = took.as_secs_f64() * 1e6 / LINKS as f64;
    bench.figures.add_aimed("chain of 1,000 tasks, a hop", hop, "µs", HOP_US, None);
    settle(&client).map(drop)
}

/// One task that takes ten thousand values which are there.
pub fn fan_in(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    let values: Vec<ObjectRef<u64>> = (0..FAN).map(|i| client.submit(next::task(i))).collect();
    for (value, expected) in values.iter().zip(1..) {
        if value.get()? != expected {
            return Err("a task returned another value than it should".into());
        }
    }
    settle(&client)?;
    let took = median_of(|| {
        let at = Instant::now();
        let total = client.submit(sum::task(&values)).get()?;
        if total == FAN * (FAN + 1) / 2 { Ok(at.elapsed()) } else { Err(format!("a sum was {total}").into()) }
    })?;
    let name = "fan-in of 10,000 references to one task";
    bench.figures.add_aimed(name, took.as_secs_f64() * 1e3, "ms", FAN_MS, None);
    settle(&client).map(drop)
}

/// `wait` for one of those that are left, until none is: a thousand times.
pub fn wait(bench: &mut Bench) -> Result<(), Failure> {
    let client = bench.client()?;
    let took = median_of(|| {
        let at = Instant::now();
        let mut left: Vec<_> = (0..WAITED).map(|_| client.submit(tasks::small_value::task())).collect();
        while !left.is_empty() {
            let ready = client.wait(&left, 1, PATIENCE);
            let found = ready.iter().position(|is_ready| *is_ready).ok_or("nothing was ready in time")?;
            left.remove(found);
        }
        Ok(at.elapsed())
    })?;
    bench.figures.add_aimed("single client wait 1k refs", took.as_secs_f64() * 1e3, "ms", WAIT_MS, None);
    settle(&client).map(drop)
}
