//! `mobula run`: a program, or an example, on the cluster of this machine's node.

use crate::args::RunArgs;
use crate::commands::missing;
use crate::config::Settings;
use crate::datadir::DataDir;
use crate::demo::example;
use crate::exit::{Failure, Outcome};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Prefix of the programs that are built in.
const EXAMPLE: &str = "example:";

/// Runs it.
pub fn run(settings: &Settings, args: &RunArgs) -> Outcome {
    if args.durable.is_some() {
        return missing::option("--durable", "a run ends with its driver");
    }
    if args.detach {
        return missing::option("--detach", "keep the driver running, or put it into the background with &");
    }
    let program = args.program.to_string_lossy();
    match program.strip_prefix(EXAMPLE) {
        Some(example::NAME) => example::run(settings.output, &socket(settings)?, &args.args),
        Some(other) => Err(Failure::usage(format!(
            "there is no example \"{other}\"; there is {EXAMPLE}{}",
            example::NAME
        ))),
        None => {
            let socket = socket(settings)?;
            // The program takes our place, so that signals and its exit code are its own.
            let error = Command::new(&args.program).args(&args.args).env("MOBULA_SOCKET", socket).exec();
            Err(format!("cannot execute {program}: {error}").into())
        }
    }
}

/// The socket of the node to attach to: `$MOBULA_SOCKET`, else of the daemon of the data directory.
fn socket(settings: &Settings) -> Result<PathBuf, Failure> {
    if let Some(socket) = std::env::var_os("MOBULA_SOCKET") {
        return Ok(socket.into());
    }
    let dir = DataDir(settings.data_dir.clone());
    let shown = dir.0.display();
    match dir.serving() {
        Some(ready) => ready.socket.ok_or_else(|| {
            format!("the daemon of {shown} is a head without CPUs; run this where a node runs, or name one with \
                     MOBULA_SOCKET")
            .into()
        }),
        None => Err(format!(
            "no node runs from {shown}; start one with `mobula start --head`, or use `mobula up` and set MOBULA_SOCKET"
        )
        .into()),
    }
}
