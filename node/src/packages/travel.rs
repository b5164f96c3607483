//! Packages from node to node, on the connections of bulk copies.

use super::{Draft, Hash, PACKAGE_BYTES_MAX, PIECE, Packages};
use crate::peers::Peers;
use mobula_base::Incarnation;
use mobula_proto::{Content, Fetch, FetchReply};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// A transfer that makes no progress for this long is given up.
const STALL: Duration = Duration::from_secs(5);
/// How writing went.
type Written = tokio::task::JoinHandle<io::Result<()>>;

/// Pieces that wait for the disk.
const WAITING_MAX: usize = 4;

/// Who has a package for certain.
pub struct Holder {
    /// For the connection.
    pub peers: Arc<Peers>,
    /// The node of the driver.
    pub node: Incarnation,
    /// Where that is, if it is known.
    pub address: Option<String>,
}

impl Packages {
    /// A file with this content on this node, brought from `holder` if need be.
    ///
    /// # Errors
    /// It is nowhere, or came wrong: says what, and what to do.
    pub async fn bring(
        self: &Arc<Self>,
        content: &Content,
        hint: &str,
        holder: &Holder,
    ) -> Result<PathBuf, String> {
        let _one = self.bringing.lock().await;
        if let Some(path) = self.look(content, hint).await {
            return Ok(path);
        }
        let what = if hint.is_empty() { "a file of the job" } else { hint };
        let failed = |why: String| {
            format!("{what} is not here as it is at the driver, and cannot be brought from its node: {why}")
        };
        self.copy(content, holder).await.map_err(|error| failed(error.to_string()))?;
        let came = self.look(content, "").await;
        came.ok_or_else(|| failed("it went again at once: is there room in the data directory?".into()))
    }

    async fn look(self: &Arc<Self>, content: &Content, hint: &str) -> Option<PathBuf> {
        let (packages, content, hint) = (self.clone(), content.clone(), hint.to_owned());
        tokio::task::spawn_blocking(move || packages.at_hand(&content, &hint)).await.ok().flatten()
    }

    async fn copy(self: &Arc<Self>, content: &Content, holder: &Holder) -> io::Result<()> {
        let hash = Hash::of(content).ok_or_else(|| invalid("its job has no hash of it"))?;
        if content.size > PACKAGE_BYTES_MAX {
            return Err(invalid("it is too large"));
        }
        let address = holder.address.as_ref().ok_or_else(|| invalid("that node is not known here"))?;
        let peers = &holder.peers;
        let mut stream = in_time(peers.net.dial(address)).await?;
        in_time(mobula_net::frame::send(&mut stream, &peers.hello(holder.node, true))).await?;
        let request = Fetch { package: content.hash.clone(), ..Fetch::default() };
        in_time(mobula_net::frame::send(&mut stream, &request)).await?;
        let reply = in_time(crate::transfer::read_reply(&mut stream)).await?;
        if !reply.found || reply.size != content.size {
            return Err(invalid("that node does not have it any more"));
        }
        let (pieces, written) = self.writer(hash)?;
        let mut left = reply.size;
        while left > 0 {
            let mut piece = vec![0; PIECE.min(left as usize)];
            in_time(stream.read_exact(&mut piece)).await?;
            left -= piece.len() as u64;
            // Whoever takes them has failed, and says why below.
            if pieces.send(piece).await.is_err() {
                break;
            }
        }
        drop(pieces);
        written.await.map_err(io::Error::other)?
    }

    /// Writes and hashes pieces on a thread of its own.
    fn writer(self: &Arc<Self>, hash: Hash) -> io::Result<(mpsc::Sender<Vec<u8>>, Written)> {
        let mut draft = Draft::new(&self.dir)?;
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(WAITING_MAX);
        let packages = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            while let Some(piece) = pieces.blocking_recv() {
                draft.write(&piece)?;
            }
            draft.keep(&packages, Some(hash)).map(drop)
        });
        Ok((sender, written))
    }

    /// Answers another node that asks for a package.
    pub(crate) async fn send<W: AsyncWrite + Unpin>(&self, wanted: &[u8], write: &mut W) -> io::Result<()> {
        let Some((file, size)) = Hash::read(wanted).and_then(|hash| self.lend_out(hash)) else {
            return mobula_net::frame::send(write, &FetchReply::default()).await;
        };
        mobula_net::frame::send(write, &FetchReply { found: true, size, crc: 0 }).await?;
        let mut offset = 0;
        while offset < size {
            let want = PIECE.min((size - offset) as usize);
            let from = file.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; want];
                from.read_exact_at(&mut piece, offset).map(|()| piece)
            });
            let piece = read.await.map_err(io::Error::other)??;
            in_time(write.write_all(&piece)).await?;
            offset += want as u64;
        }
        write.flush().await
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STALL, work).await.map_err(io::Error::other)?
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
