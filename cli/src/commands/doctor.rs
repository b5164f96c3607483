//! `mobula doctor`: whether this machine and its way to the heads are fit for a head.

use crate::commands::ask::addresses;
use crate::config::{DEFAULT_ADDRESS, Settings};
use crate::datadir::DataDir;
use crate::exit::{self, Outcome};
use crate::output::bytes;
use crate::say;
use mobula_base::disk::RealDisk;
use mobula_gcs::Client;
use mobula_gcs::identity::Identity;
use mobula_net::tcp::TcpNet;
use rustix::fs::{MemfdFlags, memfd_create, statvfs};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Writes that are timed.
const SYNCS: usize = 100;
/// Bytes of each.
const SYNC_BYTES: usize = 4096;
/// A disk that needs longer than this for most syncs slows every write down.
const SLOW_SYNC: Duration = Duration::from_millis(10);
/// Less than this free, in bytes, and the store will soon refuse writes.
const LITTLE_SPACE: u64 = 1 << 30;
/// Fewer descriptors are used up by a busy head.
const FEW_FILES: u64 = 4096;
/// Clocks further apart than this confuse whoever reads logs side by side.
const CLOCK_APART_MS: u64 = 500;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Good,
    Warning,
    Bad,
}

#[derive(Serialize)]
struct Check {
    name: &'static str,
    grade: Grade,
    found: String,
    advice: &'static str,
}

fn check(name: &'static str, grade: Grade, found: impl Into<String>, advice: &'static str) -> Check {
    Check { name, grade, found: found.into(), advice }
}

#[derive(Serialize)]
struct Report<'a> {
    verdict: Grade,
    checks: &'a [Check],
}

/// Makes all checks. 0: fit, perhaps with warnings; 1: not fit.
pub fn run(settings: &Settings) -> Outcome {
    let output = settings.output;
    let dir = DataDir(settings.data_dir.clone());
    let mut checks =
        vec![disk_speed(&dir.0), disk_space(&dir.0), memory_files(), open_files(), identity(&dir)];
    checks.extend(port(settings, &dir));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot wait for answers: {e}"))?;
    if !settings.addresses.is_empty() || dir.serving().is_some() {
        checks.extend(runtime.block_on(peers(addresses(settings))));
    }
    let verdict = checks.iter().map(|check| check.grade).max().unwrap_or(Grade::Good);
    say!(
        output,
        "{}",
        match verdict {
            Grade::Good => "fit for a head",
            Grade::Warning => "fit for a head, with warnings",
            Grade::Bad => "not fit for a head",
        }
    );
    for check in &checks {
        let grade = match check.grade {
            Grade::Good => "good",
            Grade::Warning => "warning",
            Grade::Bad => "bad",
        };
        say!(output, "  {:<8} {:<12} {}", grade, check.name, check.found);
        if check.grade != Grade::Good {
            say!(output, "           -> {}", check.advice);
        }
    }
    output.data(&Report { verdict, checks: &checks });
    Ok(if verdict == Grade::Bad { exit::FAILED } else { exit::OK })
}

/// The nearest directory that exists: the data directory may not yet.
fn nearest(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).to_owned()
}

fn disk_speed(dir: &Path) -> Check {
    let advice = "use a local disk whose fdatasync is fast: every acknowledged write waits for it";
    let path = nearest(dir).join(format!(".mobula-doctor-{}", std::process::id()));
    let timed = || -> io::Result<Vec<Duration>> {
        let mut file = File::create_new(&path)?;
        let block = [7; SYNC_BYTES];
        (0..SYNCS)
            .map(|_| {
                let before = Instant::now();
                file.write_all(&block)?;
                file.sync_data()?;
                Ok(before.elapsed())
            })
            .collect()
    };
    let timed = timed();
    fs::remove_file(&path).ok();
    match timed {
        Ok(mut times) => {
            times.sort_unstable();
            let (p50, p99) = (times[SYNCS / 2], times[SYNCS * 99 / 100]);
            let grade = if p50 > SLOW_SYNC { Grade::Warning } else { Grade::Good };
            check("fsync", grade, format!("p50 {p50:.1?}, p99 {p99:.1?} for 4 kB"), advice)
        }
        Err(error) => check(
            "fsync",
            Grade::Bad,
            format!("cannot write in {}: {error}", nearest(dir).display()),
            "give this user a data directory that it may write to, with --data-dir",
        ),
    }
}

fn disk_space(dir: &Path) -> Check {
    let advice = "free space, or use another --data-dir: a full disk refuses writes";
    match statvfs(nearest(dir)) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let grade = if free < LITTLE_SPACE { Grade::Warning } else { Grade::Good };
            check("free disk", grade, bytes(free), advice)
        }
        Err(error) => check("free disk", Grade::Warning, format!("unknown: {error}"), advice),
    }
}

fn memory_files() -> Check {
    let advice = "allow memfd_create (a sandbox may forbid it): objects are shared through it";
    match memfd_create("mobula-doctor", MemfdFlags::CLOEXEC) {
        Ok(_) => check("memfd", Grade::Good, "can be made", advice),
        Err(error) => check("memfd", Grade::Bad, format!("cannot be made: {error}"), advice),
    }
}

fn open_files() -> Check {
    let advice = "raise the limit (`ulimit -Hn`, LimitNOFILE of the unit)";
    match getrlimit(Resource::Nofile).maximum {
        Some(most) => {
            let grade = if most < FEW_FILES { Grade::Warning } else { Grade::Good };
            check("open files", grade, format!("up to {most}"), advice)
        }
        None => check("open files", Grade::Good, "no limit", advice),
    }
}

fn identity(dir: &DataDir) -> Check {
    let advice = "restore the directory, or replace this head: `mobula head replace`";
    if !dir.head().is_dir() {
        return check("identity", Grade::Good, "no head has run from this data directory", advice);
    }
    let known = RealDisk::new(dir.head()).map_err(|e| e.to_string());
    match known.and_then(|disk| Identity::load(&disk).map_err(|e| e.to_string())) {
        Ok(Some(known)) => {
            let found = format!(
                "head {} of cluster {:016x}, {} shards, format {}",
                known.head, known.cluster, known.shards, known.format
            );
            check("identity", Grade::Good, found, advice)
        }
        Ok(None) => check("identity", Grade::Warning, "none: the head has not joined a cluster yet", advice),
        Err(error) => check("identity", Grade::Bad, error, advice),
    }
}

/// The port of a head that is to run here; nothing to see while a daemon holds it.
fn port(settings: &Settings, dir: &DataDir) -> Option<Check> {
    let advice = "end the other process, or choose another --listen";
    if dir.running().is_some() {
        return None;
    }
    let _ = settings;
    Some(match TcpListener::bind(DEFAULT_ADDRESS) {
        Ok(_) => check("port", Grade::Good, format!("{DEFAULT_ADDRESS} is free"), advice),
        Err(error) => check("port", Grade::Warning, format!("{DEFAULT_ADDRESS}: {error}"), advice),
    })
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Whether the heads answer, how fast, and what time they have.
async fn peers(addresses: Vec<String>) -> Vec<Check> {
    let advice = "start the head, or open the way to it (firewall, --advertise)";
    let client = Client::new(Arc::new(TcpNet), addresses.clone(), 1);
    let mut all = addresses;
    for address in all.clone() {
        let named = client.status_of(&address).await.map(|status| status.heads).unwrap_or_default();
        for head in named {
            if !all.contains(&head) {
                all.push(head);
            }
        }
    }
    let mut checks = Vec::new();
    for address in all {
        let before = (Instant::now(), unix_ms());
        match client.shards_of(&address).await {
            Ok(reply) => {
                let took = before.0.elapsed();
                let here = before.1 + took.as_millis() as u64 / 2;
                let apart = here.abs_diff(reply.unix_ms).saturating_sub(took.as_millis() as u64 / 2);
                let grade = if apart > CLOCK_APART_MS { Grade::Warning } else { Grade::Good };
                let found = format!("{address} answers in {took:.1?}, its clock is {apart} ms apart");
                checks.push(check(
                    "head",
                    grade,
                    found,
                    "let NTP or chrony set the clocks: logs are compared",
                ));
            }
            Err(error) => checks.push(check("head", Grade::Bad, error.to_string(), advice)),
        }
    }
    checks
}
