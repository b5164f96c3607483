//! The job as tasks: `read` → `shingle` → `band` → `verify`.
//!
//! `read` makes large objects that `verify` needs again at the end, `band` reads all signatures
//! of all blocks: an all-to-all shuffle, with lineage three deep below every result.

use super::answer;
use super::block::{FileRef, pack};
use super::input::Input;
use super::lsh::{BANDS, Pair};
use super::progress::Progress;
use super::similarity::Match;
use super::steps;
use mobula::{Blob, Client, Error, Many, ObjectRef};
use std::time::Duration;

/// Bands in one `band` task.
const BANDS_PER_TASK: u32 = 2;
/// How long one look at a result that is said to be there may take.
const FETCH_PATIENCE: Duration = Duration::from_millis(20);

/// Reads the files of one block.
#[mobula::remote]
fn read(files: Vec<FileRef>) -> Result<Blob, String> {
    steps::read(&files).map(Blob::from)
}

/// Signs the texts of one block.
#[mobula::remote]
fn shingle(block: Blob) -> Result<Blob, String> {
    steps::shingle(&block).map(Blob::from)
}

/// Finds the candidate pairs of some bands over all signatures.
#[mobula::remote]
fn band(signatures: Many<Blob>, first: u32, count: u32) -> Result<Vec<Pair>, String> {
    steps::band(signatures.0.iter().map(|s| &s[..]), first..first + count)
}

/// Compares pairs whose files lie in `blocks`.
#[mobula::remote]
fn verify(blocks: Many<Blob>, pairs: Vec<Pair>) -> Result<Vec<Match>, String> {
    steps::verify(blocks.0.iter().map(|b| &b[..]), &pairs)
}

/// A running job.
pub struct Job {
    client: Client,
    block_of: Vec<u32>,
    read: Watched<Blob>,
    shingle: Watched<Blob>,
    band: Gathered<Vec<Pair>>,
    verify: Option<Gathered<Vec<Match>>>,
    /// Pairs found by `band`, once it is over.
    pub candidates: usize,
}

impl Job {
    /// Submits everything whose inputs are known: all but `verify`.
    pub fn start(client: &Client, input: &Input) -> Job {
        let blocks = pack(&input.files);
        let block_of = input.block_of(&blocks);
        let read: Vec<_> = blocks.into_iter().map(|files| client.submit(read::task(files))).collect();
        let shingle: Vec<_> = read.iter().map(|block| client.submit(shingle::task(block))).collect();
        let band: Vec<_> = (0..BANDS)
            .step_by(BANDS_PER_TASK as usize)
            .map(|first| client.submit(band::task(&shingle, first, BANDS_PER_TASK)))
            .collect();
        Job {
            client: client.clone(),
            block_of,
            read: Watched::new(read),
            shingle: Watched::new(shingle),
            band: Gathered::new(band),
            verify: None,
            candidates: 0,
        }
    }

    /// Looks how far the job is, and submits what has become possible. The answer, once there.
    ///
    /// # Errors
    /// A task failed for good, or the node daemon is gone.
    pub fn poll(&mut self) -> Result<Option<Vec<Match>>, Error> {
        self.read.look();
        self.shingle.look();
        match &mut self.verify {
            None => {
                if let Some(parts) = self.band.gather()? {
                    let pairs = steps::merge(parts);
                    self.candidates = pairs.len();
                    self.verify = Some(Gathered::new(self.submit_verify(&pairs)));
                }
                Ok(None)
            }
            Some(verify) => Ok(verify.gather()?.map(|parts| {
                let mut matches: Vec<Match> = parts.into_iter().flatten().collect();
                answer::order(&mut matches);
                matches
            })),
        }
    }

    fn submit_verify(&self, pairs: &[Pair]) -> Vec<ObjectRef<Vec<Match>>> {
        steps::group(pairs, &self.block_of, steps::VERIFY_TASKS_MAX)
            .into_iter()
            .map(|comparison| {
                let blocks: Vec<_> =
                    comparison.blocks.iter().map(|b| self.read.refs[*b as usize].clone()).collect();
                self.client.submit(verify::task(blocks, comparison.pairs))
            })
            .collect()
    }

    /// How far the job is.
    pub fn progress(&self) -> Progress {
        Progress {
            read: self.read.counts(),
            shingle: self.shingle.counts(),
            band: self.band.watched.counts(),
            verify: self.verify.as_ref().map(|v| v.watched.counts()),
        }
    }

    /// Whether the daemon is still there, told by asking for something that is not ready.
    ///
    /// # Errors
    /// It is not.
    pub fn check_link(&self) -> Result<(), Error> {
        match self.band.refs_open().map(|r| r.get_timeout(Duration::ZERO).map(|_| ())) {
            Some(Err(gone @ Error::Disconnected(_))) => Err(gone),
            _ => Ok(()),
        }
    }
}

/// References and which of them have been seen ready. Once seen, it counts: an object that is
/// lost later was finished all the same.
struct Watched<T> {
    refs: Vec<ObjectRef<T>>,
    is_done: Vec<bool>,
    done: usize,
}

impl<T> Watched<T> {
    fn new(refs: Vec<ObjectRef<T>>) -> Self {
        Watched { is_done: vec![false; refs.len()], refs, done: 0 }
    }

    fn look(&mut self) {
        for (reference, is_done) in self.refs.iter().zip(&mut self.is_done) {
            if !*is_done && reference.is_ready() {
                *is_done = true;
                self.done += 1;
            }
        }
    }

    fn counts(&self) -> (usize, usize) {
        (self.done, self.refs.len())
    }
}

/// References whose values are collected as they come.
struct Gathered<T> {
    watched: Watched<T>,
    values: Vec<Option<T>>,
}

impl<T: serde::de::DeserializeOwned> Gathered<T> {
    fn new(refs: Vec<ObjectRef<T>>) -> Self {
        Gathered { values: refs.iter().map(|_| None).collect(), watched: Watched::new(refs) }
    }

    /// Collects what is ready; all values once the last is there.
    fn gather(&mut self) -> Result<Option<Vec<T>>, Error> {
        self.watched.look();
        for (at, value) in self.values.iter_mut().enumerate() {
            if value.is_none() && self.watched.is_done[at] {
                match self.watched.refs[at].get_timeout(FETCH_PATIENCE) {
                    Ok(got) => *value = Some(got),
                    // Lost since: it is being made again.
                    Err(Error::Timeout(_)) => return Ok(None),
                    Err(other) => return Err(other),
                }
            }
        }
        if self.values.iter().any(Option::is_none) {
            return Ok(None);
        }
        Ok(Some(self.values.iter_mut().map(|v| v.take().expect("none is missing")).collect()))
    }

    fn refs_open(&self) -> Option<&ObjectRef<T>> {
        self.values.iter().position(Option::is_none).map(|at| &self.watched.refs[at])
    }
}
