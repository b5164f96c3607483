//! `mobula run example:neardup`: the demo's job on a cluster that already runs.

use super::input::{self, Input};
use super::job::Job;
use super::report::PairReport;
use super::screen::Screen;
use super::similarity::Match;
use super::{answer, pairs_of};
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, bytes};
use crate::say;
use clap::Parser;
use mobula::{Client, ConnectOptions};
use serde::Serialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What the example is called after `example:`.
pub const NAME: &str = "neardup";
/// Pause between two looks at the job.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// How often the connection is looked at.
const LINK_PAUSE: Duration = Duration::from_secs(1);

/// Finds near-duplicate files.
#[derive(Debug, Parser)]
#[command(name = "mobula run example:neardup --", no_binary_name = true)]
struct Args {
    /// Any directory with text files [default: the Rust sources in cargo's cache]
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
}

#[derive(Serialize)]
struct Answer {
    files: usize,
    candidates: usize,
    matches: usize,
    hash: String,
    job_s: f64,
    interesting: Vec<PairReport>,
}

/// Runs the job from this process as its driver.
pub fn run(output: Output, socket: &Path, args: &[OsString]) -> Outcome {
    let args = Args::try_parse_from(args).map_err(|e| Failure::usage(e.to_string()))?;
    let input = match args.input {
        Some(dir) => input::directory(&dir).map_err(Failure::usage)?,
        None => input::cargo_cache(),
    };
    if input.files.is_empty() {
        return Err(Failure::usage("cargo's cache holds no source of this project; give -- --input DIR"));
    }
    say!(output, "input     {} in {} files: {}", bytes(input.bytes()), input.files.len(), input.name);
    let options = ConnectOptions {
        socket: socket.to_owned(),
        job_name: NAME.into(),
        connect_timeout: Duration::from_secs(10),
        ..ConnectOptions::default()
    };
    let client = Client::connect(options)?;
    let mut screen = Screen::new(output);
    let outcome = work(&client, &input, &mut screen);
    screen.finish();
    let ended = client.end(outcome.is_ok());
    let (matches, candidates) = outcome?;
    ended?;
    let answer = Answer {
        files: input.files.len(),
        candidates,
        matches: matches.len(),
        hash: answer::hash(&matches, &input.labels),
        job_s: screen.started().elapsed().as_secs_f64(),
        interesting: pairs_of(&input, &matches),
    };
    say!(output, "answer    {} near-duplicate pairs of {candidates} candidates", answer.matches);
    for pair in &answer.interesting {
        say!(output, "  {:>5.1} %  {}  {}", f64::from(pair.similar_ppm) / 1e4, pair.a, pair.b);
    }
    say!(output, "hash      {} after {:.1} s", answer.hash, answer.job_s);
    output.data(&answer);
    Ok(exit::OK)
}

fn work(client: &Client, input: &Input, screen: &mut Screen) -> Result<(Vec<Match>, usize), mobula::Error> {
    let mut job = Job::start(client, input);
    let mut link_checked = Instant::now();
    loop {
        let answer = job.poll()?;
        screen.update(&job.progress());
        for notice in client.take_notices() {
            screen.event(&format!("{} {}", notice.kind, notice.text));
        }
        if let Some(matches) = answer {
            return Ok((matches, job.candidates));
        }
        if link_checked.elapsed() >= LINK_PAUSE {
            link_checked = Instant::now();
            job.check_link()?;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}
