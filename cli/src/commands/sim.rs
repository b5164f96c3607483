//! `mobula sim`: executes the simulator, which is a program of its own so that no part of it is
//! ever inside this one.

use crate::exit::{self, Failure, Outcome};
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The simulator's binary.
const PROGRAM: &str = "mobula-sim";

/// Runs the simulator with `args`; its exit code is ours.
pub fn run(args: &[OsString]) -> Outcome {
    let mut command = command()?;
    command.args(args);
    let status = command
        .status()
        .map_err(|e| Failure { code: 5, message: format!("cannot execute the simulator: {e}") })?;
    // A shell's way to say that a signal ended it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(u8::try_from(code).unwrap_or(exit::FAILED))
}

fn command() -> Result<Command, Failure> {
    if let Some(beside) = beside_us() {
        return Ok(Command::new(beside));
    }
    let from = std::env::current_dir().unwrap_or_default();
    if let Some(root) = checkout(&from) {
        return Ok(by_cargo(&root));
    }
    Err(Failure::usage(format!(
        "{PROGRAM} is not installed beside this program, and {} is in no checkout of Mobula; install it from a \
         checkout with `RUSTFLAGS=\"--cfg tokio_unstable\" cargo install --locked --path sim-tests --features \
         simulation,mutants`",
        from.display()
    )))
}

fn beside_us() -> Option<PathBuf> {
    let candidate = std::env::current_exe().ok()?.with_file_name(PROGRAM);
    candidate.is_file().then_some(candidate)
}

/// The checkout that `from` is in.
fn checkout(from: &Path) -> Option<PathBuf> {
    from.ancestors().find(|dir| dir.join("sim-tests/Cargo.toml").is_file()).map(Path::to_owned)
}

/// Cargo builds and runs it: in a target directory of its own, because its flags would otherwise
/// rebuild the product each time the two take turns.
fn by_cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["run", "--quiet", "--locked", "-p", "mobula-sim-tests", "--bin", PROGRAM]);
    command.args(["--features", "simulation,mutants", "--profile", "sim"]);
    // Not by the working directory: paths among the arguments are relative to the caller's.
    command.arg("--manifest-path").arg(root.join("Cargo.toml"));
    command.arg("--target-dir").arg(root.join("target/sim"));
    command.arg("--");
    command.env("RUSTFLAGS", "--cfg tokio_unstable").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_is_found_from_inside_it_only() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        if let Some(root) = checkout(&here.join("src")) {
            assert!(root.join("sim-tests").is_dir());
        }
        assert_eq!(checkout(Path::new("/nonexistent/deep")), None);
    }
}
