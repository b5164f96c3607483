//! Where text goes: data to standard output, with `--json` nothing else; a reader that went away
//! ends the process quietly instead of in a panic.

use crate::exit;
use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal, Write};

/// Who reads the output.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Standard output is for programs: one JSON document. Text for people goes to standard error.
    pub is_json: bool,
}

impl Output {
    /// A line for people.
    pub fn line(self, text: fmt::Arguments<'_>) {
        if self.is_json { complain(text) } else { put(text) }
    }

    /// The data that was asked for, where it was asked for as JSON.
    pub fn data(self, data: &impl Serialize) {
        if self.is_json {
            let text = serde_json::to_string_pretty(data).expect("reports have only text keys");
            put(format_args!("{text}"));
        }
    }

    /// One of many, as they come: a line of JSON, where JSON was asked for.
    pub fn record(self, data: &impl Serialize) {
        if self.is_json {
            let text = serde_json::to_string(data).expect("reports have only text keys");
            put(format_args!("{text}"));
        }
    }

    /// Whether a person watches the lines as they appear.
    pub fn is_watched(self) -> bool {
        if self.is_json { io::stderr().is_terminal() } else { io::stdout().is_terminal() }
    }
}

/// Prints a line for people: `say!(output, "{} heads", n)`.
#[macro_export]
macro_rules! say {
    ($output:expr) => { $output.line(format_args!("")) };
    ($output:expr, $($text:tt)*) => { $output.line(format_args!($($text)*)) };
}

/// Writes a line to standard output.
fn put(text: fmt::Arguments<'_>) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        drop(stdout);
        if error.kind() == io::ErrorKind::BrokenPipe {
            exit::leave(exit::CLOSED_OUTPUT);
        }
        complain(format_args!("error: cannot write to standard output: {error}"));
        exit::leave(exit::FAILED);
    }
}

/// Writes a line to standard error. When that is closed too, there is nobody left to tell.
pub fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Bytes for people: `1.5 MB`.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.2} GB", count as f64 / 1e9),
    }
}

/// Milliseconds for people: `8.6 ms`, `1.20 s`.
pub fn millis(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.1} ms") } else { format!("{:.2} s", ms / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(
            [bytes(7), bytes(1500), bytes(84_860_413), bytes(2_500_000_000)],
            ["7 B", "1.5 kB", "84.9 MB", "2.50 GB"]
        );
        assert_eq!([millis(8.64), millis(1204.0)], ["8.6 ms", "1.20 s"]);
    }
}
