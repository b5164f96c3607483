//! The last lines that a daemon has logged, for whoever asks over the network.

use axum::Router;
use mobula_proto::log_server::{Log, LogServer};
use mobula_proto::{LogReply, LogRequest};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

/// Lines that are kept, of at most so many bytes each: about 2 MB at the most.
pub const LINES_MAX: usize = 4_000;
/// Longer lines are cut.
pub const LINE_MAX: usize = 500;

#[derive(Default)]
struct Lines {
    kept: VecDeque<String>,
    /// Number of the last one, counted from 1.
    last: u64,
    /// What was written since the last end of a line.
    begun: Vec<u8>,
}

/// Keeps the last lines of what is written to it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Ring(Arc<Mutex<Lines>>);

impl Ring {
    /// More of the log, in whatever pieces.
    pub fn write(&self, bytes: &[u8]) {
        let mut lines = self.0.lock().expect("nothing panics under this lock");
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_MAX.saturating_sub(lines.begun.len());
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            lines.begun.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                let line = String::from_utf8_lossy(&std::mem::take(&mut lines.begun)).into_owned();
                if lines.kept.len() == LINES_MAX {
                    lines.kept.pop_front();
                }
                lines.kept.push_back(line);
                lines.last += 1;
            }
        }
    }

    /// Lines after a number, the last so many of them; 0: all that are kept.
    pub fn read(&self, after: u64, count: u32) -> LogReply {
        let lines = self.0.lock().expect("nothing panics under this lock");
        let first = lines.last - lines.kept.len() as u64;
        // A number of an earlier life of the daemon is of nothing.
        let after = if after > lines.last { 0 } else { after };
        let mut skip = after.saturating_sub(first) as usize;
        if count > 0 {
            skip = skip.max(lines.kept.len().saturating_sub(count as usize));
        }
        LogReply {
            lines: lines.kept.iter().skip(skip).cloned().collect(),
            last: lines.last,
            lost: after > 0 && after < first,
        }
    }

    /// Serves it.
    pub fn router(&self) -> Router {
        let name = <LogServer<Ring> as NamedService>::NAME;
        Router::new().route_service(&format!("/{name}/{{*method}}"), LogServer::new(self.clone()))
    }
}

#[tonic::async_trait]
impl Log for Ring {
    async fn read(&self, request: Request<LogRequest>) -> Result<Response<LogReply>, Status> {
        let LogRequest { after, lines } = request.into_inner();
        Ok(Response::new(Ring::read(self, after, lines)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_go_on_from_a_number() {
        let ring = Ring::default();
        ring.write(b"one\ntw");
        ring.write(b"o\nthree\n");
        assert_eq!(ring.read(0, 2).lines, ["two", "three"]);
        let rest = ring.read(2, 0);
        assert_eq!((rest.lines, rest.last, rest.lost), (vec!["three".to_owned()], 3, false));
        assert_eq!(ring.read(99, 0).lines.len(), 3, "the daemon has begun anew since");
        for n in 0..LINES_MAX {
            ring.write(format!("{n} {}\n", "x".repeat(2 * LINE_MAX)).as_bytes());
        }
        let all = ring.read(1, 0);
        assert!(all.lost && all.lines.len() == LINES_MAX && all.lines[0].len() == LINE_MAX);
    }
}
