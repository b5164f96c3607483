//! What was injected into daemons that this program did not start, on disk before it is done: so that whatever becomes of
//! whoever injected it, it is undone at the end of its time, on the way out, or by the next command.

use crate::commands::fault_switch;
use crate::config::Settings;
use crate::datadir;
use crate::process::Process;
use mobula_gcs::clock::unix_ms;
use mobula_net::auth::Token;
use mobula_net::faults::Weather;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// How something is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Undo {
    /// These go on.
    Continue(Vec<Process>),
    /// The daemon with this fault switch has fair weather again.
    Weather(PathBuf),
}

/// Something that was injected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What, in words.
    pub what: String,
    /// Who injected it.
    pub by: Process,
    /// When its time is over, by this machine's clock.
    pub until_unix_ms: u64,
    /// How it is undone.
    pub undo: Undo,
}

/// The journal of a data directory.
pub struct Journal(PathBuf);

impl Journal {
    /// That of the data directory that is set.
    pub fn of(settings: &Settings) -> Self {
        Journal(settings.data_dir.join("chaos"))
    }

    /// Writes an entry down; its place.
    ///
    /// # Errors
    /// The disk refuses: then nothing may be injected.
    pub fn write(&self, entry: &Entry) -> Result<PathBuf, String> {
        let path = self.0.join(format!("{}-{}.json", entry.by.pid, entry.until_unix_ms));
        let written = std::fs::create_dir_all(&self.0).and_then(|()| datadir::write(&path, entry));
        written
            .map_err(|e| format!("cannot write {}: {e}; without it nothing is injected", path.display()))?;
        Ok(path)
    }

    /// Undoes everything that is on record and `is_due`: what was undone, and what could not be.
    pub fn undo(
        &self,
        token: Option<&Token>,
        is_due: impl Fn(&Entry) -> bool,
    ) -> Vec<(Entry, Result<(), String>)> {
        let Ok(listed) = std::fs::read_dir(&self.0) else { return Vec::new() };
        let mut undone = Vec::new();
        for path in listed.flatten().map(|listed| listed.path()) {
            let read = std::fs::read(&path).map_err(|e| e.to_string());
            let entry =
                read.and_then(|text| serde_json::from_slice::<Entry>(&text).map_err(|e| e.to_string()));
            // Half an entry is of something that never was done.
            let Ok(entry) = entry else { continue };
            if is_due(&entry) {
                let outcome = undo(&path, &entry, token);
                undone.push((entry, outcome));
            }
        }
        undone
    }

    /// Undoes what is overdue, or whose injector is gone.
    pub fn undo_overdue(&self, token: Option<&Token>) -> Vec<(Entry, Result<(), String>)> {
        let now = unix_ms();
        self.undo(token, |entry| entry.until_unix_ms <= now || !entry.by.is_alive())
    }
}

/// Undoes one, and strikes it from the record.
///
/// # Errors
/// It cannot be undone now; it stays on record.
pub fn undo(path: &Path, entry: &Entry, token: Option<&Token>) -> Result<(), String> {
    match &entry.undo {
        Undo::Continue(processes) => processes.iter().for_each(|process| process.signal(Signal::CONT)),
        // A daemon that has gone took its weather along.
        Undo::Weather(socket) if is_gone(socket) => {}
        Undo::Weather(socket) => fault_switch::order(socket, &Weather::default(), token)?,
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

fn is_gone(socket: &Path) -> bool {
    match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused),
        Ok(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_or_nobodys_is_undone_and_the_rest_stays() {
        let dir = std::env::temp_dir().join(format!("mobula-journal-test-{}", std::process::id()));
        let journal = Journal(dir.join("chaos"));
        let me = Process::current();
        let gone = Process { started_ticks: me.started_ticks + 1, ..me };
        let entry = |what: &str, by: Process, until_unix_ms: u64| Entry {
            what: what.into(),
            by,
            until_unix_ms,
            undo: Undo::Weather(dir.join("no.sock")),
        };
        let later = unix_ms() + 3_600_000;
        for (at, (what, by, until)) in
            [("overdue", me, 1), ("nobody's", gone, later), ("open", me, later + 1)].into_iter().enumerate()
        {
            journal.write(&entry(what, by, until + at as u64)).expect("writable");
        }
        let mut undone: Vec<String> = journal
            .undo_overdue(None)
            .into_iter()
            .map(|(entry, outcome)| {
                outcome.expect("its daemon is gone");
                entry.what
            })
            .collect();
        undone.sort();
        assert_eq!(undone, ["nobody's", "overdue"]);
        assert!(journal.undo_overdue(None).is_empty(), "it is struck from the record");
        assert_eq!(journal.undo(None, |_| true).len(), 1);
        std::fs::remove_dir_all(&dir).expect("removable");
    }
}
