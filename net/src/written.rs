//! Messages that wait for one connection's writer, written the moment they are pushed.
//!
//! Where an [`Outbox`](crate::frame::Outbox) keeps messages that may still be merged, a [`Written`] keeps their
//! bytes: a message is encoded once, while it is at hand, and takes as much memory as it takes on the wire.

use crate::frame::{BATCH_BYTES_MAX, BATCH_MAX};
use bytes::{BufMut, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::io;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// The field of a frame's message that repeats the messages of a batch.
const BATCH_FIELD: u32 = 1;
/// A buffer that has grown beyond this is not kept.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// Bytes of a frame's length.
const PREFIX: usize = 4;

#[derive(Default)]
struct Frames {
    bytes: BytesMut,
    /// Where the last frame begins, while another message may be added to it.
    open: Option<usize>,
    /// Messages in that frame.
    count: usize,
    closed: bool,
}

impl Frames {
    /// Adds a message of `len` bytes to the last frame, or begins another.
    fn add(&mut self, len: usize, write: impl FnOnce(&mut BytesMut)) {
        let is_full =
            |begin: usize| self.count == BATCH_MAX || self.bytes.len() - begin + len > BATCH_BYTES_MAX;
        let begin = match self.open.filter(|begin| !is_full(*begin)) {
            Some(begin) => begin,
            None => {
                self.count = 0;
                let begin = self.bytes.len();
                self.bytes.put_bytes(0, PREFIX);
                self.open = Some(begin);
                begin
            }
        };
        encode_key(BATCH_FIELD, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(len as u64, &mut self.bytes);
        write(&mut self.bytes);
        self.count += 1;
        let frame = (self.bytes.len() - begin - PREFIX) as u32;
        self.bytes[begin..begin + PREFIX].copy_from_slice(&frame.to_le_bytes());
    }
}

/// The queue of one connection's writer, for frames that are batches of `T`: a message whose field 1 repeats `T`.
///
/// Unbounded by itself, like an [`Outbox`](crate::frame::Outbox), and bounded by the same windows.
pub struct Written<T> {
    queue: Arc<(Mutex<Frames>, Notify)>,
    of: PhantomData<fn(T)>,
}

impl<T> Clone for Written<T> {
    fn clone(&self) -> Self {
        Written { queue: self.queue.clone(), of: PhantomData }
    }
}

impl<T> Default for Written<T> {
    fn default() -> Self {
        Written { queue: Arc::default(), of: PhantomData }
    }
}

impl<T: Message> Written<T> {
    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.queue.0.lock().expect("never poisoned: nothing panics under this lock")
    }

    /// Queues a message; dropped when the connection is closed.
    pub fn push(&self, message: &T) {
        self.push_raw(message.encoded_len(), |out| message.encode(out).expect("BytesMut grows"));
    }

    /// Queues a message of `len` bytes that `write` appends: for whoever has its parts, and not the message.
    pub fn push_raw(&self, len: usize, write: impl FnOnce(&mut BytesMut)) {
        let mut frames = self.frames();
        if frames.closed {
            return;
        }
        let was_empty = frames.bytes.is_empty();
        frames.add(len, write);
        if was_empty {
            self.queue.1.notify_one();
        }
    }

    /// Ends the writer once everything queued is written.
    pub fn close(&self) {
        self.frames().closed = true;
        self.queue.1.notify_one();
    }

    /// Takes all frames that are queued, waiting for some, and leaves `empty` in their place; `None` once closed
    /// and empty.
    async fn take(&self, empty: &mut BytesMut) -> Option<BytesMut> {
        loop {
            {
                let mut frames = self.frames();
                if !frames.bytes.is_empty() {
                    (frames.open, frames.count) = (None, 0);
                    return Some(std::mem::replace(&mut frames.bytes, std::mem::take(empty)));
                }
                if frames.closed {
                    return None;
                }
            }
            self.queue.1.notified().await;
        }
    }

    /// Writes what is pushed until [`Written::close`].
    ///
    /// # Errors
    /// The connection broke.
    pub async fn write_to<W: AsyncWrite + Unpin>(&self, mut writer: W) -> io::Result<()> {
        let mut empty = BytesMut::new();
        while let Some(frames) = self.take(&mut empty).await {
            writer.write_all(&frames).await?;
            if frames.capacity() <= BUFFER_KEPT_MAX {
                empty = frames;
                empty.clear();
            }
        }
        writer.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, FrameReader};
    use mobula_proto::{Committed, DaemonMsg, ToClient, daemon_msg};

    fn message(revision: u64, task: usize) -> DaemonMsg {
        let committed = Committed { task: vec![7; task].into(), revision, elided: 0 };
        DaemonMsg { msg: Some(daemon_msg::Msg::Committed(committed)) }
    }

    #[tokio::test]
    async fn what_is_pushed_is_read_in_order_in_frames_of_bounded_size() {
        let written = Written::<DaemonMsg>::default();
        let (a, b) = tokio::io::duplex(1 << 16);
        let sizes = |n: usize| if n == 2000 { 2 * BATCH_BYTES_MAX } else { n % 300 };
        let writer = tokio::spawn({
            let written = written.clone();
            async move { written.write_to(a).await }
        });
        for n in 0..5000 {
            written.push(&message(n as u64, sizes(n)));
        }
        written.close();
        written.push(&message(9999, 1));
        let (mut reader, mut read) = (FrameReader::new(b), 0);
        while let Some(frame) = reader.next::<ToClient>().await.expect("frames") {
            assert!(frame.msgs.len() <= BATCH_MAX && !frame.msgs.is_empty());
            assert!(
                frame.encoded_len() <= BATCH_BYTES_MAX + 64 || frame.msgs.len() == 1,
                "one frame is too long"
            );
            for msg in frame.msgs {
                assert_eq!(msg, message(read as u64, sizes(read)));
                read += 1;
            }
        }
        assert_eq!(read, 5000, "what is pushed after the end is dropped, and nothing else");
        writer.await.expect("no panic").expect("open");
    }

    #[test]
    fn frames_are_those_of_the_message_that_repeats_them() {
        let mut frames = Frames::default();
        let msgs: Vec<DaemonMsg> = (0..3).map(|n| message(n, 18)).collect();
        for msg in &msgs {
            frames.add(msg.encoded_len(), |out| msg.encode(out).expect("BytesMut grows"));
        }
        let mut expected = BytesMut::new();
        frame::encode(&ToClient { msgs }, &mut expected);
        assert_eq!(frames.bytes, expected);
    }
}
