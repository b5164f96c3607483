//! Bulk copies between nodes: their own connection, checksummed, straight into the arena.

use crate::input::{Inbox, Input};
use crate::peers::Peers;
use crate::spill::{Pieces, SpillError};
use bytes::Bytes;
use mobula_base::disk::Disk;
use mobula_base::{Incarnation, JobId, ObjectId};
use mobula_net::frame::FrameReader;
use mobula_objstore::depot::File;
use mobula_objstore::{Region, StoreError};
use mobula_proto::{Fetch, FetchReply, INLINE_MAX, Output, object_bytes, object_id};
use mobula_scheduler::{Event, FetchError, Value};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot;

/// A transfer that makes no progress for this long is given up.
const STALL: Duration = Duration::from_secs(2);
/// Bytes read or written at once.
const CHUNK: usize = 1 << 20;

/// Answers fetches on one connection until it closes. `region` is reached through the loop's
/// answers: a sealed object never moves.
pub async fn serve<R, W>(peers: &Peers, mut reader: FrameReader<R>, mut write: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    while let Ok(Some(fetch)) = reader.next::<Fetch>().await {
        let answered = match &peers.packages {
            Some(packages) if !fetch.package.is_empty() => packages.send(&fetch.package, &mut write).await,
            Some(_) | None => answer(&peers.inbox, &fetch, &mut write).await,
        };
        if answered.is_err() {
            return;
        }
    }
}

async fn answer<W: AsyncWrite + Unpin>(inbox: &Inbox, fetch: &Fetch, write: &mut W) -> io::Result<()> {
    let value = match object_id(&fetch.object) {
        Ok(object) => {
            let (reply, value) = oneshot::channel();
            let want = fetch.want.unwrap_or_default();
            inbox.send(Input::Lookup { object, want, reply }).await.map_err(io::Error::other)?;
            value.await.map_err(io::Error::other)?
        }
        Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    };
    let Some(lent) = value else {
        return mobula_net::frame::send(write, &FetchReply::default()).await;
    };
    let sent = send(inbox, &lent, write).await;
    let served = Input::Served { object: lent.object, transfer: lent.transfer };
    inbox.send(served).await.map_err(io::Error::other)?;
    sent
}

async fn send<W: AsyncWrite + Unpin>(inbox: &Inbox, lent: &Lent, write: &mut W) -> io::Result<()> {
    let reply = FetchReply { found: true, size: lent.bytes.len(), crc: lent.crc };
    match &lent.bytes {
        Held::Inline(bytes) => {
            mobula_net::frame::send(write, &reply).await?;
            send_bytes(bytes, write).await?;
        }
        Held::Shared(region, offset, len) => {
            mobula_net::frame::send(write, &reply).await?;
            send_bytes(region.view(*offset, *len), write).await?;
        }
        Held::File(disk, file) => {
            if let Err(error) = send_file(disk.clone(), lent, *file, &reply, write).await? {
                tracing::error!(object = %lent.object, %error, "an object cannot be sent from its file");
                let damaged = Input::SpillDamaged { object: lent.object, file: *file };
                inbox.send(damaged).await.map_err(io::Error::other)?;
                // Whoever asked sees that it ends too early, or that its checksum is wrong.
                return Err(io::Error::other(error));
            }
        }
    }
    write.flush().await
}

async fn send_bytes<W: AsyncWrite + Unpin>(bytes: &[u8], write: &mut W) -> io::Result<()> {
    for chunk in bytes.chunks(CHUNK) {
        tokio::time::timeout(STALL, write.write_all(chunk)).await.map_err(io::Error::other)??;
    }
    Ok(())
}

/// What lies in a file is not brought back to memory for another node. The inner error is the file's.
async fn send_file<W: AsyncWrite + Unpin>(
    disk: Arc<dyn Disk>,
    lent: &Lent,
    file: File,
    reply: &FetchReply,
    write: &mut W,
) -> io::Result<Result<(), SpillError>> {
    let mut pieces = match Pieces::open(disk, lent.object, file).await {
        Ok(pieces) => pieces,
        Err(error) => return Ok(Err(error)),
    };
    mobula_net::frame::send(write, reply).await?;
    loop {
        match pieces.next().await {
            Ok(Some(bytes)) => send_bytes(&bytes, write).await?,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Bytes that stay as they are until the transfer says that it is through.
pub struct Lent {
    /// The object.
    pub object: ObjectId,
    /// The number of the transfer.
    pub transfer: u64,
    /// The bytes.
    pub bytes: Held,
    /// Their CRC-32.
    pub crc: u32,
}

/// Bytes of an object this node holds.
pub enum Held {
    /// On the heap.
    Inline(Bytes),
    /// In the region.
    Shared(Region, u64, u64),
    /// In a file.
    File(Arc<dyn Disk>, File),
}

impl Held {
    fn len(&self) -> u64 {
        match self {
            Held::Inline(bytes) => bytes.len() as u64,
            Held::Shared(_, _, len) => *len,
            Held::File(_, file) => file.len,
        }
    }
}

/// What to copy, from where.
pub struct Order {
    /// The object.
    pub object: ObjectId,
    /// Its job.
    pub job: JobId,
    /// Who holds it.
    pub from: Incarnation,
    /// Where that is, if it is known.
    pub address: Option<String>,
    /// What is on record of it, as far as this node knows.
    pub output: Output,
}

/// Copies one object here and tells the loop how it went.
pub async fn fetch(peers: Arc<Peers>, region: Region, order: Order) {
    let (object, from) = (order.object, order.from);
    let event = match copy(&peers, &region, &order).await {
        Ok(Some(value)) => Event::Fetched { object, value },
        // The loop seals and tells the core itself.
        Ok(None) => return,
        Err(why) => Event::FetchFailed { object, from, why },
    };
    let _ = peers.inbox.send(Input::Core(event)).await;
}

async fn copy(peers: &Peers, region: &Region, order: &Order) -> Result<Option<Value>, FetchError> {
    let gone = |_: io::Error| FetchError::Unreachable;
    let late = |_: tokio::time::error::Elapsed| FetchError::Unreachable;
    let (mut stream, reply) = ask(peers, order).await?;
    if reply.size as usize <= INLINE_MAX {
        let mut bytes = vec![0; reply.size as usize];
        tokio::time::timeout(STALL, stream.read_exact(&mut bytes)).await.map_err(late)?.map_err(gone)?;
        return match crc32fast::hash(&bytes) == reply.crc {
            true => Ok(Some(Value::Inline(bytes.into()))),
            false => Err(FetchError::Corrupt),
        };
    }
    copy_shared(peers, region, order, stream, &reply).await
}

/// Asks a holder for an object: its bytes follow on the stream.
async fn ask(peers: &Peers, order: &Order) -> Result<(mobula_net::Stream, FetchReply), FetchError> {
    let gone = |_: io::Error| FetchError::Unreachable;
    let late = |_: tokio::time::error::Elapsed| FetchError::Unreachable;
    let address = order.address.as_ref().ok_or(FetchError::Unreachable)?;
    let mut stream =
        tokio::time::timeout(STALL, peers.net.dial(address)).await.map_err(late)?.map_err(gone)?;
    mobula_net::frame::send(&mut stream, &peers.hello(order.from, true)).await.map_err(gone)?;
    let request =
        Fetch { object: object_bytes(order.object), offset: 0, want: Some(order.output), ..Fetch::default() };
    mobula_net::frame::send(&mut stream, &request).await.map_err(gone)?;
    let reply = tokio::time::timeout(STALL, read_reply(&mut stream)).await.map_err(late)?.map_err(gone)?;
    if reply.found { Ok((stream, reply)) } else { Err(FetchError::NotFound) }
}

pub(crate) async fn read_reply(stream: &mut mobula_net::Stream) -> io::Result<FetchReply> {
    // Read exactly the frame: what follows are raw bytes.
    let len = stream.read_u32_le().await? as usize;
    if len > 1024 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a fetch reply"));
    }
    let mut frame = vec![0; len];
    stream.read_exact(&mut frame).await?;
    prost::Message::decode(&frame[..]).map_err(io::Error::other)
}

async fn copy_shared(
    peers: &Peers,
    region: &Region,
    order: &Order,
    stream: mobula_net::Stream,
    reply: &FetchReply,
) -> Result<Option<Value>, FetchError> {
    let (answer, room) = oneshot::channel();
    let reserve = Input::Reserve { object: order.object, len: reply.size, job: order.job, reply: answer };
    let since = tokio::time::Instant::now();
    peers.inbox.send(reserve).await.map_err(|_| FetchError::Unreachable)?;
    let offset = match room.await.map_err(|_| FetchError::Unreachable)? {
        Ok(offset) => offset,
        // Somebody here has made it meanwhile.
        Err(StoreError::Exists(place)) => return Ok(Some(crate::input::shared(place))),
        Err(StoreError::Busy | StoreError::JobEnded) => return Err(FetchError::Unreachable),
        Err(error) => return Err(FetchError::StoreFull(error.to_string())),
    };
    // A holder does not wait for long: it is asked again once there is room.
    let result = match since.elapsed() < STALL / 2 {
        true => fill(region, offset, stream, reply).await,
        false => match ask(peers, order).await {
            Ok((stream, again)) if again == *reply => fill(region, offset, stream, reply).await,
            Ok(_) => Err(FetchError::Unreachable),
            Err(why) => Err(why),
        },
    };
    let input = match result {
        Ok(()) => Input::Filled { object: order.object, crc: reply.crc },
        Err(_) => Input::Abandoned { object: order.object },
    };
    peers.inbox.send(input).await.map_err(|_| FetchError::Unreachable)?;
    result.map(|()| None)
}

async fn fill(
    region: &Region,
    offset: u64,
    mut stream: mobula_net::Stream,
    reply: &FetchReply,
) -> Result<(), FetchError> {
    let mut crc = crc32fast::Hasher::new();
    let mut at = 0u64;
    while at < reply.size {
        let want = CHUNK.min((reply.size - at) as usize);
        // Straight to where it is to lie: nobody else is told of the place before it is sealed.
        let mut read = std::pin::pin!(std::future::poll_fn(|cx| {
            region.write_with(offset + at, want, |room| {
                let mut room = ReadBuf::new(room);
                let read = std::pin::Pin::new(&mut stream).poll_read(cx, &mut room);
                read.map_ok(|()| {
                    crc.update(room.filled());
                    room.filled().len()
                })
            })
        }));
        match tokio::time::timeout(STALL, &mut read).await {
            Ok(Ok(n)) if n > 0 => at += n as u64,
            Ok(Ok(_) | Err(_)) | Err(_) => return Err(FetchError::Unreachable),
        }
    }
    if crc.finalize() == reply.crc { Ok(()) } else { Err(FetchError::Corrupt) }
}
