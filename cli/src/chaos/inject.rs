//! One thing done to a daemon of this machine that runs already, and undone when its time is over, on an interrupt, or,
//! should this process die, by the next `chaos` command.

use crate::chaos::args::InjectArgs;
use crate::chaos::journal::{self, Entry, Journal, Undo};
use crate::commands::fault_switch;
use crate::config::Settings;
use crate::datadir::DataDir;
use crate::exit::{self, Failure, Outcome};
use crate::process::Process;
use crate::{say, signals};
use mobula_chaos::scenario::parse_time;
use mobula_gcs::clock::unix_ms;
use mobula_net::auth::Token;
use mobula_net::faults::Weather;
use rustix::process::Signal;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Nothing lasts longer: whoever wants that wants another tool.
const LASTS_MAX: Duration = Duration::from_secs(600);

/// What this process has injected and not undone yet.
static OPEN: Mutex<Vec<(PathBuf, Entry, Option<Token>)>> = Mutex::new(Vec::new());

/// Undoes what this process has injected: on every way out of it.
pub fn undo_own() {
    let open = std::mem::take(&mut *OPEN.lock().unwrap_or_else(PoisonError::into_inner));
    for (path, entry, token) in open {
        if let Err(why) = journal::undo(&path, &entry, token.as_ref()) {
            crate::output::complain(format_args!(
                "{} is not undone: {why}; `mobula chaos heal --all`",
                entry.what
            ));
        }
    }
}

#[derive(Serialize)]
struct Undone {
    what: String,
    undone: bool,
    why: Option<String>,
}

/// Undoes everything on record.
pub fn heal_all(settings: &Settings) -> Outcome {
    let token = settings.net()?.token().cloned();
    let all = Journal::of(settings).undo(token.as_ref(), |_| true);
    say!(settings.output, "{} on record", all.len());
    Ok(tell(settings, all))
}

fn tell(settings: &Settings, all: Vec<(Entry, Result<(), String>)>) -> u8 {
    let mut list = Vec::new();
    for (entry, outcome) in all {
        let why = outcome.err();
        match &why {
            None => say!(settings.output, "undone: {}", entry.what),
            Some(why) => say!(settings.output, "NOT undone: {}: {why}", entry.what),
        }
        list.push(Undone { what: entry.what, undone: why.is_none(), why });
    }
    let failed = list.iter().any(|undone| !undone.undone);
    settings.output.data(&list);
    if failed { exit::FAILED } else { exit::OK }
}

/// Does it, waits, and undoes it.
pub fn command(settings: &Settings, args: &InjectArgs) -> Outcome {
    let lasts = parse_time(&args.lasts).map_err(Failure::usage)?;
    if lasts > LASTS_MAX {
        return Err(Failure::usage(format!("--for {}: at most {} s", args.lasts, LASTS_MAX.as_secs())));
    }
    let token = settings.net()?.token().cloned();
    for (entry, outcome) in Journal::of(settings).undo_overdue(token.as_ref()) {
        say!(settings.output, "left behind by an earlier command: {} ({:?})", entry.what, outcome);
    }
    let dir = DataDir(args.daemon.clone().unwrap_or_else(|| settings.data_dir.clone()));
    let shown = dir.0.display().to_string();
    let daemon = dir
        .running()
        .ok_or_else(|| format!("no daemon runs from {shown}; name its directory with --daemon"))?;
    let name = dir.serving().map_or(shown, |ready| format!("{} {}", ready.role, ready.name));
    match args.fault.as_str() {
        "kill" => {
            daemon.signal(Signal::KILL);
            say!(settings.output, "killed {name}; whoever started it starts it again");
            return Ok(exit::OK);
        }
        "kill-worker" => {
            let worker =
                daemon.children().into_iter().next().ok_or_else(|| format!("{name} has no worker now"))?;
            worker.signal(Signal::KILL);
            say!(settings.output, "killed worker {} of {name}", worker.pid);
            return Ok(exit::OK);
        }
        _ => {}
    }
    let weather = weather(args)?;
    let (what, undo) = match &weather {
        None => {
            let all: Vec<Process> = std::iter::once(daemon).chain(daemon.children()).collect();
            (format!("{name} stopped"), Undo::Continue(all))
        }
        Some(weather) => (format!("{name}: {weather}"), Undo::Weather(dir.fault_switch())),
    };
    let until_unix_ms = unix_ms() + lasts.as_millis() as u64;
    let entry = Entry { what, by: Process::current(), until_unix_ms, undo };
    signals::leave_in_order();
    let path = Journal::of(settings).write(&entry)?;
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).push((path, entry.clone(), token.clone()));
    match (&weather, &entry.undo) {
        (Some(weather), _) => {
            fault_switch::order(&dir.fault_switch(), weather, token.as_ref()).map_err(|why| {
                format!(
                    "{why}; only a daemon started with --fault-switch {} can be told",
                    dir.fault_switch().display()
                )
            })?
        }
        (None, Undo::Continue(all)) => all.iter().for_each(|process| process.signal(Signal::STOP)),
        (None, Undo::Weather(_)) => unreachable!("weather is undone by weather"),
    }
    say!(settings.output, "{} for {}", entry.what, args.lasts);
    std::thread::sleep(lasts);
    undo_own();
    say!(settings.output, "undone");
    Ok(exit::OK)
}

/// The weather that is asked for, if it is weather.
///
/// # Errors
/// There is no such fault, or its options make no sense.
fn weather(args: &InjectArgs) -> Result<Option<Weather>, Failure> {
    let only = args.only.clone();
    Ok(Some(match args.fault.as_str() {
        "stop" => return Ok(None),
        "cut" => Weather { cut: args.way.parse().map_err(Failure::usage)?, only, ..Weather::default() },
        "delay" => {
            Weather { delay: parse_time(&args.by).map_err(Failure::usage)?, only, ..Weather::default() }
        }
        "requests" => Weather { calls: [args.permille.min(333); 3], only, ..Weather::default() },
        other => {
            return Err(Failure::usage(format!(
                "nothing is called {other:?}: there are kill, kill-worker, stop, cut, delay and requests"
            )));
        }
    }))
}
