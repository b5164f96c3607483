//! Length-prefixed messages: `u32` little-endian length, then the protobuf bytes.
//!
//! A connection has one queue: an [`Outbox`], where messages are kept until they are acknowledged, or a
//! [`Written`](crate::written::Written). Whoever has something to say pushes it; the connection's writer takes
//! everything that has queued up and makes one write of it. So batches are as large as the peer is slow, and no
//! larger.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mobula_proto::FRAME_MAX;
use prost::Message;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// How many messages one frame carries at most, so that no frame nears [`FRAME_MAX`] by count.
pub const BATCH_MAX: usize = 1024;
/// And how many bytes, unless one message alone is larger.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Bytes that a connection is read into at a time; less than so many are not worth reading for.
const READ_BUFFER: usize = 64 * 1024;
const READ_MIN: usize = 8 * 1024;

/// Splits what has queued up into batches that fit a frame.
pub fn batches<T: Message>(items: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut rest = items.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut batch = vec![rest.next()?];
        let mut bytes = batch[0].encoded_len();
        while batch.len() < BATCH_MAX {
            let Some(next) = rest.next_if(|next| bytes + next.encoded_len() <= BATCH_BYTES_MAX) else {
                break;
            };
            bytes += next.encoded_len();
            batch.push(next);
        }
        Some(batch)
    })
}

/// Appends one frame to `out`.
pub fn encode<M: Message>(message: &M, out: &mut BytesMut) {
    let len = message.encoded_len();
    out.reserve(4 + len);
    out.put_u32_le(len as u32);
    message.encode(out).expect("BytesMut grows");
}

/// Whether a connection that begins so may speak frames: the first word of any other protocol of ours,
/// read as a length, is too long.
pub fn may_begin(first: [u8; 4]) -> bool {
    u32::from_le_bytes(first) as usize <= FRAME_MAX
}

/// Splits complete frames off a byte stream.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// The buffer to read into, with room behind what is in it. What was read stays where it is for as long as a
    /// message refers to it, so a buffer is filled before there is another.
    pub fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < READ_MIN {
            self.buffer.reserve(READ_BUFFER);
        }
        &mut self.buffer
    }

    /// The next complete frame, if it has arrived.
    ///
    /// # Errors
    /// A length beyond [`FRAME_MAX`]: the peer does not speak this protocol.
    pub fn next_frame(&mut self) -> io::Result<Option<Bytes>> {
        let Some(prefix) = self.buffer.get(..4) else { return Ok(None) };
        let len = u32::from_le_bytes(prefix.try_into().expect("four bytes")) as usize;
        if len > FRAME_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("frame of {len} bytes (at most {FRAME_MAX}): the peer is not a Mobula process"),
            ));
        }
        if self.buffer.len() < 4 + len {
            self.buffer.reserve(4 + len - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// The next message.
    ///
    /// # Errors
    /// As [`Decoder::next_frame`], or bytes that are not an `M`.
    pub fn next_message<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        match self.next_frame()? {
            None => Ok(None),
            Some(frame) => {
                M::decode(frame).map(Some).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
            }
        }
    }
}

/// Reads messages one by one.
pub struct FrameReader<R> {
    reader: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames from `reader`.
    pub fn new(reader: R) -> Self {
        FrameReader { reader, decoder: Decoder::default() }
    }

    /// The next message; `None` when the peer closed the connection between frames.
    pub async fn next<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(Some(message));
            }
            if self.reader.read_buf(self.decoder.buffer()).await? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Writes one message.
pub async fn send<M: Message, W: AsyncWrite + Unpin>(writer: &mut W, message: &M) -> io::Result<()> {
    let mut out = BytesMut::new();
    encode(message, &mut out);
    writer.write_all(&out).await
}

struct Queue<T> {
    items: Vec<T>,
    closed: bool,
}

/// The queue of messages that wait for one connection's writer.
///
/// It is unbounded by itself: what is queued is bounded by the windows of those who push (tasks in
/// flight, resource slots), which are named where they are set.
pub struct Outbox<T> {
    queue: Arc<(Mutex<Queue<T>>, Notify)>,
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Outbox { queue: self.queue.clone() }
    }
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Outbox { queue: Arc::new((Mutex::new(Queue { items: Vec::new(), closed: false }), Notify::new())) }
    }
}

impl<T> Outbox<T> {
    /// Queues a message; dropped when the connection is closed.
    pub fn push(&self, item: T) {
        let mut queue = self.queue.0.lock().expect("never poisoned: nothing panics under this lock");
        if queue.closed {
            return;
        }
        queue.items.push(item);
        if queue.items.len() == 1 {
            self.queue.1.notify_one();
        }
    }

    /// Queues many messages.
    pub fn extend(&self, items: impl IntoIterator<Item = T>) {
        let mut queue = self.queue.0.lock().expect("never poisoned: nothing panics under this lock");
        if queue.closed {
            return;
        }
        queue.items.extend(items);
        self.queue.1.notify_one();
    }

    /// Ends the writer once everything queued is written.
    pub fn close(&self) {
        self.queue.0.lock().expect("never poisoned: nothing panics under this lock").closed = true;
        self.queue.1.notify_one();
    }

    /// Takes everything that is queued, waiting for something; `None` once closed and empty.
    pub async fn take(&self) -> Option<Vec<T>> {
        while self.wait().await {
            if let Some(items) = self.try_take() {
                return Some(items);
            }
        }
        None
    }

    /// Takes everything that is queued, if anything is.
    fn try_take(&self) -> Option<Vec<T>> {
        let mut queue = self.queue.0.lock().expect("never poisoned: nothing panics under this lock");
        (!queue.items.is_empty()).then(|| std::mem::take(&mut queue.items))
    }

    /// Waits until something is queued; false once closed and empty.
    async fn wait(&self) -> bool {
        loop {
            {
                let queue = self.queue.0.lock().expect("never poisoned: nothing panics under this lock");
                if !queue.items.is_empty() {
                    return true;
                }
                if queue.closed {
                    return false;
                }
            }
            self.queue.1.notified().await;
        }
    }

    /// Writes what is pushed until [`Outbox::close`]; `wrap` makes a frame's message of a batch.
    pub async fn write_to<W, M>(&self, mut writer: W, wrap: impl Fn(Vec<T>) -> M) -> io::Result<()>
    where
        W: AsyncWrite + Unpin,
        T: Message,
        M: Message,
    {
        let mut out = BytesMut::with_capacity(64 * 1024);
        while let Some(items) = self.take().await {
            for batch in batches(items) {
                encode(&wrap(batch), &mut out);
                if out.len() > BATCH_BYTES_MAX {
                    writer.write_all(&out).await?;
                    out.clear();
                }
            }
            writer.write_all(&out).await?;
            out.clear();
            if out.capacity() > 4 << 20 {
                out = BytesMut::with_capacity(64 * 1024);
            }
        }
        writer.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_proto::{PeerHello, ToPeer};

    #[tokio::test]
    async fn frames_survive_any_split() {
        let (mut a, b) = tokio::io::duplex(3);
        let writer = tokio::spawn(async move {
            for i in 0..5 {
                let hello = PeerHello { incarnation: i, ..Default::default() };
                send(&mut a, &hello).await.expect("open");
            }
        });
        let mut reader = FrameReader::new(b);
        for i in 0..5 {
            let hello: PeerHello = reader.next().await.expect("valid").expect("open");
            assert_eq!(hello.incarnation, i);
        }
        writer.await.expect("no panic");
        assert!(reader.next::<ToPeer>().await.expect("clean end").is_none());
    }

    #[test]
    fn small_reads_share_a_buffer() {
        let mut decoder = Decoder::default();
        let (mut frames, mut buffers) = (Vec::new(), std::collections::BTreeSet::new());
        for _ in 0..10 {
            let mut frame = BytesMut::new();
            encode(&PeerHello { incarnation: 7, ..Default::default() }, &mut frame);
            let buffer = decoder.buffer();
            assert!(buffer.capacity() - buffer.len() >= READ_MIN);
            buffer.extend_from_slice(&frame);
            let frame = decoder.next_frame().expect("valid").expect("whole");
            buffers.insert(frame.as_ptr() as usize / READ_BUFFER);
            frames.push(frame);
        }
        assert!(buffers.len() <= 2, "ten small frames lie in {} buffers", buffers.len());
    }

    #[test]
    fn a_foreign_peer_is_named() {
        for first in [*b"GET ", *b"HEAD", *b"POST", *b"PRI ", *b"MPRB"] {
            assert!(!may_begin(first), "{first:?}");
        }
        assert!(may_begin([60, 0, 0, 0]));
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(b"GET / HTTP/1.1");
        let error = decoder.next_frame().expect_err("not a length of ours");
        assert!(error.to_string().contains("not a Mobula process"), "{error}");
    }
}
