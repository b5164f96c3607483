//! `mobula`: the command line of a distributed runtime whose head nodes may die.
//!
//! A client like any other: it starts daemons, asks heads, submits jobs. Read it in this order:
//!
//! - [`args`], [`config`] — what can be asked; `docs/cli.md` is the contract.
//! - [`commands`] — one file for each command; [`demo`], [`bench`], [`experiment`] and [`chaos`] have folders
//!   of their own.
//! - [`cluster`] — heads and nodes as children of this process, which leave nothing behind.
//! - [`datadir`], [`process`], [`limits`], [`signals`] — what the operating system is asked.
//! - [`exit`], [`output`] — how a command ends, and where text goes.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "mobula runs on Linux only: it shares memory by memfd and follows its processes through /proc"
);

/// See the workspace's Cargo.toml.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod args;
mod bench;
mod chaos;
mod cluster;
mod commands;
mod config;
mod datadir;
mod demo;
mod disk_probe;
mod exit;
mod experiment;
mod limits;
mod output;
mod process;
mod signals;

use args::{Cli, Command};
use clap::{CommandFactory, FromArgMatches};
use config::Settings;
use exit::Outcome;

fn main() {
    // A daemon starts the driver's own binary as worker, and this is the driver of the demo.
    mobula::run_worker_if_asked();
    let asked = Cli::command().try_get_matches();
    let parsed = asked.and_then(|found| Ok((Cli::from_arg_matches(&found)?, found)));
    let (cli, found) = match parsed {
        Ok(parsed) => parsed,
        Err(refusal) => {
            // Help goes to standard output, complaints to standard error; closed ones are fine.
            let _ = refusal.print();
            exit::leave(if refusal.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    let code = match run(&cli, &found) {
        Ok(code) => code,
        Err(failure) => {
            exit::report(&failure);
            failure.code
        }
    };
    exit::leave(code);
}

fn run(cli: &Cli, found: &clap::ArgMatches) -> Outcome {
    if let Command::Janitor { dir } = &cli.command {
        return cluster::janitor::run(dir);
    }
    let settings = Settings::new(&cli.global)?;
    match &cli.command {
        Command::Demo(args) => demo::run(&settings, args),
        Command::Start(args) => commands::start::run(&settings, &args.member),
        Command::Stop => commands::stop::run(&settings),
        Command::Status => commands::status::run(&settings),
        Command::Head(command) => commands::head::run(&settings, command),
        Command::Shard(command) => commands::shard::run(&settings, command),
        Command::Snapshot(command) => commands::snapshot::run(&settings, command),
        Command::Events(args) => commands::events::run(&settings, args),
        Command::Explain(args) => commands::explain::run(&settings, args),
        Command::List(args) => commands::list::run(&settings, args),
        Command::Get(args) => commands::get::run(&settings, args),
        Command::Summary(args) => commands::summary::run(&settings, args),
        Command::Memory(args) => commands::memory::run(&settings, args),
        Command::Top => commands::top::run(&settings),
        Command::Logs(args) => commands::logs::run(&settings, args),
        Command::Lineage(args) => commands::lineage::run(&settings, args),
        Command::Timeline(args) => commands::timeline::run(&settings, args),
        Command::Doctor => commands::doctor::run(&settings),
        Command::Up(args) => commands::up::run(&settings, args),
        Command::Run(args) => commands::run::run(&settings, args),
        Command::Sim(passed) => commands::sim::run(&passed.args),
        Command::Experiment(args) => experiment::run(&settings, args),
        Command::Chaos(command) => chaos::run(&settings, command),
        Command::Bench(args) => bench::run(&settings, args),
        Command::Token(args) => commands::access::token(&settings, args),
        Command::Tls(args) => commands::access::tls(&settings, args),
        Command::Config(args) => commands::config::run(&settings, args, found),
        Command::Daemon(args) => commands::daemon::run(&settings, args),
        Command::Reference(args) => demo::reference_process(args),
        Command::Bare(args) => bench::micro::floor::run(args),
        Command::Janitor { .. } => unreachable!("handled above"),
    }
}
