//! `mobula start`: this machine's daemon, in the background.

use crate::args::MemberArgs;
use crate::cluster::{log, spawner};
use crate::config::{Settings, check_address};
use crate::datadir::{DataDir, Ready};
use crate::exit::{self, Failure, Outcome};
use crate::process::Process;
use crate::{limits, say, signals};
use rustix::process::Signal;
use std::fs::{self, File};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a daemon may take to serve.
const PATIENCE: Duration = Duration::from_secs(40);
/// A head that waits for the other heads of its list goes on waiting in the background.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(4);

/// A daemon that is being started: an interrupted `start` takes it along.
static STARTING: Mutex<Option<Process>> = Mutex::new(None);

/// Kills the daemon of a `start` that did not get to its end.
pub fn abandon() {
    if let Some(process) = STARTING.lock().unwrap_or_else(PoisonError::into_inner).take() {
        process.signal(Signal::TERM);
        if !process.wait_end(Duration::from_secs(5)) {
            process.signal(Signal::KILL);
        }
    }
}

/// Starts the daemon and waits until it serves.
pub fn run(settings: &Settings, member: &MemberArgs) -> Outcome {
    let member = &settings.member(member);
    check(member).map_err(Failure::usage)?;
    if let Some(listen) = &member.listen {
        settings.check_exposure(listen, member.insecure)?;
    }
    settings.net()?;
    limits::raise_open_files()?;
    let dir = DataDir(settings.data_dir.clone());
    let shown = dir.0.display();
    fs::create_dir_all(&dir.0).map_err(|e| format!("cannot use {shown} as data directory: {e}"))?;
    if let Some(process) = dir.running() {
        return Err(format!(
            "a daemon (pid {}) already runs from {shown}; stop it with `mobula stop`, or use another --data-dir",
            process.pid
        )
        .into());
    }
    signals::leave_in_order();
    let from = log::len(&dir.log());
    let (mut child, process) = spawn(settings, &dir, member)?;
    *STARTING.lock().expect("nothing panics under this lock") = Some(process);
    let up = wait(&dir, &mut child, process, member);
    let _ = STARTING.lock().expect("nothing panics under this lock").take();
    match up {
        Up::Serves(ready) => {
            announce(settings, &dir, &ready);
            Ok(exit::OK)
        }
        Up::WaitsForOthers => {
            say!(
                settings.output,
                "started (pid {}); it waits for the other heads of its --join list, or to be added to their cluster",
                process.pid
            );
            say!(
                settings.output,
                "  a new cluster: start them in any order; `mobula status` says when it is formed"
            );
            say!(
                settings.output,
                "  a cluster that runs: `mobula head add` and this head's address; {} says what is missing",
                dir.log().display()
            );
            Ok(exit::OK)
        }
        Up::Ended(status) => {
            Err(format!("the daemon did not start ({status}): {}", log::tail(&dir.log(), from)).into())
        }
        Up::Late => {
            process.signal(Signal::KILL);
            let said = log::tail(&dir.log(), from);
            Err(format!("the daemon did not come up within {} s and was ended: {said}", PATIENCE.as_secs())
                .into())
        }
    }
}

/// Refuses what cannot work before anything is started.
fn check(member: &MemberArgs) -> Result<(), String> {
    if !member.head && member.join.is_empty() {
        return Err("start a head with --head, or name the heads of a running cluster with --join".into());
    }
    if !member.head && member.cpus == Some(0) {
        return Err("--cpus 0 without --head leaves nothing to run; give --head, or some CPUs".into());
    }
    if member.shards == Some(0) {
        return Err("a control store needs a shard; use --shards 1 or more".into());
    }
    if let Some(format) = &member.log_format {
        crate::commands::daemon::log_format(format)?;
    }
    for address in member.join.iter().chain(&member.listen).chain(&member.advertise) {
        check_address(address)?;
    }
    for resource in &member.resource {
        crate::commands::daemon::resource(resource)?;
    }
    for label in &member.label {
        crate::commands::daemon::label(label)?;
    }
    Ok(())
}

fn spawn(settings: &Settings, dir: &DataDir, member: &MemberArgs) -> Result<(Child, Process), Failure> {
    let no_log = |e| format!("cannot write {}: {e}", dir.log().display());
    let out = File::options().create(true).append(true).open(dir.log()).map_err(no_log)?;
    let err = out.try_clone().map_err(no_log)?;
    let mut command = spawner::this_program();
    if !member.head {
        command.env(spawner::LEAN_ALLOCATOR.0, spawner::LEAN_ALLOCATOR.1);
    }
    command.arg("daemon").arg("--own-session").arg("--data-dir").arg(&dir.0);
    // The same file: another may lie in the working directory.
    let config = settings.from_file.as_ref().map(|(path, _)| path.clone());
    let paths =
        [("--config", &config), ("--token-file", &settings.token_file), ("--tls-dir", &settings.tls_dir)];
    for (option, path) in paths {
        if let Some(path) = path {
            command.arg(option).arg(path);
        }
    }
    pass(&mut command, member);
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let child = spawner::spawn(command).map_err(|e| format!("cannot start a process: {e}"))?;
    let process = Process::of(child.id()).ok_or("the daemon ended at once")?;
    Ok((child, process))
}

/// Hands the options on.
fn pass(command: &mut Command, member: &MemberArgs) {
    let flags = [("--head", member.head), ("--insecure", member.insecure), ("--no-repair", member.no_repair)];
    for (flag, is_given) in flags {
        if is_given {
            command.arg(flag);
        }
    }
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    };
    option("--join", (!member.join.is_empty()).then(|| member.join.join(",")));
    option("--listen", member.listen.clone());
    option("--advertise", member.advertise.clone());
    option("--shards", member.shards.map(|n| n.to_string()));
    option("--cpus", member.cpus.map(|c| c.to_string()));
    option("--name", member.name.clone());
    option("--gpus", member.gpus.map(|n| n.to_string()));
    option("--memory-mb", member.memory_mb.map(|mb| mb.to_string()));
    option("--memory-full", member.memory_full.map(|percent| percent.to_string()));
    option("--store-mb", member.store_mb.map(|mb| mb.to_string()));
    option("--log-format", member.log_format.clone());
    for resource in &member.resource {
        option("--resource", Some(resource.clone()));
    }
    for label in &member.label {
        option("--label", Some(label.clone()));
    }
}

enum Up {
    Serves(Box<Ready>),
    WaitsForOthers,
    Ended(std::process::ExitStatus),
    Late,
}

fn wait(dir: &DataDir, child: &mut Child, process: Process, member: &MemberArgs) -> Up {
    let may_wait_for_others = member.head && !member.join.is_empty();
    let patience = if may_wait_for_others { PATIENCE_WITH_OTHERS } else { PATIENCE };
    let deadline = Instant::now() + patience;
    loop {
        if let Some(ready) = dir.serving().filter(|r| r.process == process) {
            return Up::Serves(Box::new(ready));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Up::Ended(status);
        }
        if Instant::now() >= deadline {
            return if may_wait_for_others { Up::WaitsForOthers } else { Up::Late };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn announce(settings: &Settings, dir: &DataDir, ready: &Ready) {
    let output = settings.output;
    say!(output, "started {} \"{}\" (pid {})", ready.role, ready.name, ready.process.pid);
    if let Some(address) = &ready.head_address {
        say!(output, "  head      {address}");
    }
    if let Some(address) = &ready.peer_address {
        say!(output, "  node      {address}");
    }
    if let Some(socket) = &ready.socket {
        say!(output, "  socket    {}", socket.display());
    }
    say!(output, "  data      {}", dir.0.display());
    if let Some(address) = &ready.head_address {
        let is_local =
            address.starts_with("127.") || address.starts_with("localhost:") || address.starts_with("[::1]");
        let advice = if is_local {
            "for more machines, start with --listen and an address that they reach"
        } else {
            "on other machines, `mobula start --join` and this address"
        };
        say!(output, "  more      {advice}");
    }
    say!(output, "  next      `mobula status`, `mobula run example:neardup`, `mobula stop`");
    output.data(ready);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command as Asked};
    use clap::Parser;

    fn checked(args: &[&str]) -> Result<(), String> {
        let line = ["mobula", "start"].iter().chain(args);
        let Asked::Start(start) = Cli::try_parse_from(line).expect("well-formed").command else {
            panic!("start")
        };
        check(&start.member)
    }

    #[test]
    fn what_cannot_start_is_refused_with_what_to_do() {
        checked(&["--head"]).expect("a head");
        checked(&["--join", "10.0.0.1:6380"]).expect("a node");
        for (args, expected) in [
            (&[][..], "--head"),
            (&["--cpus", "0", "--join", "a:1"][..], "--cpus 0"),
            (&["--head", "--shards", "0"][..], "--shards 1"),
            (&["--head", "--join", "a"][..], "host:port"),
            (&["--head", "--resource", "gpu"][..], "NAME=AMOUNT"),
            (&["--head", "--label", "zone"][..], "KEY=VALUE"),
        ] {
            let error = checked(args).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
