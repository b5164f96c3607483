//! What a daemon that did not come up had to say.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Lines shown of a log without a clear error.
const LINES_MAX: usize = 10;
/// Bytes of a log that are looked at.
const TAIL_BYTES: u64 = 16 * 1024;

/// The last error in a log from offset `from` on, else its last lines.
pub fn tail(path: &Path, from: u64) -> String {
    let text = read_tail(path, from).unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let start = lines
        .iter()
        .rposition(|l| l.starts_with("error: "))
        .unwrap_or_else(|| lines.len().saturating_sub(LINES_MAX));
    let shown = lines[start..].join("\n");
    match shown.strip_prefix("error: ") {
        Some(error) => error.to_owned(),
        None if shown.is_empty() => format!("it said nothing (log: {})", path.display()),
        None => shown,
    }
}

/// How long a log is now; 0 when there is none.
pub fn len(path: &Path) -> u64 {
    path.metadata().map_or(0, |m| m.len())
}

fn read_tail(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL_BYTES)))).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_is_what_counts() {
        let path = std::env::temp_dir().join(format!("mobula-log-test-{}", std::process::id()));
        let check = |text: &str, from: u64, expected: &str| {
            std::fs::write(&path, text).expect("writable");
            assert_eq!(tail(&path, from), expected);
        };
        check("INFO a\nerror: port\n  taken\n", 0, "port\n  taken");
        check("error: old\nINFO new\n", 11, "INFO new");
        check("a\nb\n", 0, "a\nb");
        std::fs::write(&path, "").expect("writable");
        assert!(tail(&path, 0).contains("said nothing"));
        std::fs::remove_file(&path).expect("removable");
    }
}
