//! Tasks that sleep, and answer with what can be checked: they hold a CPU of the cluster and leave the machine's to others.

use super::steps::now_us;
use mobula::{Client, ObjectRef};
use mobula_chaos::mix::mix;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What a nap answers, and when it ended, in microseconds since 1970.
pub type Woken = (u64, u64);

#[mobula::remote]
pub fn nap(number: u64, micros: u64) -> Woken {
    if micros > 0 {
        std::thread::sleep(Duration::from_micros(micros));
    }
    (answer(number), now_us())
}

/// What a nap answers.
pub fn answer(number: u64) -> u64 {
    mix(number, 0x6e61_7073)
}

/// When it ended, if it answered so within `patience`.
///
/// # Errors
/// It did not.
pub fn check(nap: &ObjectRef<Woken>, number: u64, patience: Duration) -> Result<u64, String> {
    match nap.get_timeout(patience) {
        Ok((found, at_us)) if found == answer(number) => Ok(at_us),
        Ok((found, _)) => Err(format!("task {number} answered {found:#x}")),
        Err(error) => Err(format!("task {number}: {error}")),
    }
}

/// What came of a stream of naps.
#[derive(Default)]
pub struct Napped {
    /// When each task with a right answer ended, in microseconds since 1970.
    pub ended_us: Vec<u64>,
    /// Wrong answers and failures.
    pub wrong: Vec<String>,
}

/// Keeps `in_flight` naps in flight until told to stop, each of which may take `patience`; then waits for the rest.
pub fn stream(
    client: &Client,
    (in_flight, micros): (usize, u64),
    patience: Duration,
    stop: impl Fn() -> bool,
) -> Napped {
    let mut napped = Napped::default();
    let mut window: VecDeque<(u64, ObjectRef<Woken>)> = VecDeque::new();
    let mut number = 0;
    loop {
        while window.len() < in_flight && !stop() {
            window.push_back((number, client.submit(nap::task(number, micros))));
            number += 1;
        }
        let Some((number, oldest)) = window.pop_front() else { return napped };
        match check(&oldest, number, patience) {
            Ok(at_us) => napped.ended_us.push(at_us),
            Err(why) => napped.wrong.push(why),
        }
    }
}

/// From `submit` to `get`, one task after the other, each with its answer checked.
///
/// # Errors
/// One is wrong or does not come within `patience`.
pub fn singly(client: &Client, count: usize, patience: Duration) -> Result<Vec<Duration>, String> {
    let mut times = Vec::with_capacity(count);
    for number in 0..count as u64 {
        let at = Instant::now();
        check(&client.submit(nap::task(number, 0)), number, patience)?;
        times.push(at.elapsed());
    }
    Ok(times)
}

impl Napped {
    /// Tasks that ended in a second, in each whole second from one moment to another, microseconds since 1970.
    pub fn rates(&self, from_us: u64, to_us: u64) -> Vec<f64> {
        let mut rates = vec![0.0; (to_us.saturating_sub(from_us) / 1_000_000) as usize];
        for at_us in self.ended_us.iter().filter(|at_us| **at_us >= from_us) {
            if let Some(rate) = rates.get_mut(((at_us - from_us) / 1_000_000) as usize) {
                *rate += 1.0;
            }
        }
        rates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_whole_seconds() {
        let ended_us = vec![500_000, 1_000_000, 1_999_999, 2_000_000, 3_400_000];
        let napped = Napped { ended_us, wrong: Vec::new() };
        assert_eq!(napped.rates(1_000_000, 3_900_000), [2.0, 1.0]);
        assert_eq!(napped.rates(5, 4), [0.0; 0]);
    }
}
