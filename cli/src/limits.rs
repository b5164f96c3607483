//! What the operating system must allow before a daemon can keep its promises.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that a daemon or a driver of a small cluster needs: logs, sockets, workers.
const OPEN_FILES_MIN: u64 = 256;
/// As many as we ask for where we may.
const OPEN_FILES_WANTED: u64 = 65_536;

/// Raises the limit of open files as far as allowed; children inherit it.
///
/// # Errors
/// Even the hard limit is too low to run.
pub fn raise_open_files() -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let current = limit.current.unwrap_or(u64::MAX);
    let wanted = current.max(OPEN_FILES_WANTED.min(most));
    if wanted > current {
        // A refusal leaves what there was, which is judged below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
    let got = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if got < OPEN_FILES_MIN {
        return Err(format!(
            "only {got} files may be open at once, at least {OPEN_FILES_MIN} are needed: the limit is set too \
             low; raise it with `ulimit -n {OPEN_FILES_MIN}` or more"
        ));
    }
    Ok(())
}
