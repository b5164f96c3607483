//! Messages that wait for one connection's writer, written the moment they are pushed.
//!
//! Where an [`Outbox`](crate::frame::Outbox) keeps messages, a [`Written`] keeps their bytes: a message is encoded
//! once, while it is at hand, and takes as much memory as it takes on the wire. Only the last one may wait as it
//! is, so that more can be added to it.

use crate::frame::{BATCH_BYTES_MAX, BATCH_MAX};
use bytes::{BufMut, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// The field of a frame's message that repeats the messages of a batch.
const BATCH_FIELD: u32 = 1;
/// A buffer that has grown beyond this is not kept.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// Bytes of a frame's length.
const PREFIX: usize = 4;

struct Frames<T> {
    /// Those that are full: each in a buffer of its own, so that a long queue is not moved as it grows.
    full: Vec<BytesMut>,
    /// The one that messages are added to; empty if there is none.
    open: BytesMut,
    /// Messages in that one.
    count: usize,
    /// What comes after all of that, and may still be added to.
    last: Option<T>,
    closed: bool,
}

impl<T> Default for Frames<T> {
    fn default() -> Self {
        Frames { full: Vec::new(), open: BytesMut::new(), count: 0, last: None, closed: false }
    }
}

impl<T: Message> Frames<T> {
    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.full.is_empty() && self.last.is_none()
    }

    fn add_message(&mut self, message: &T) {
        self.add(message.encoded_len(), |out| message.encode(out).expect("BytesMut grows"));
    }

    /// Nothing more is added to the last message.
    fn settle(&mut self) {
        if let Some(last) = self.last.take() {
            self.add_message(&last);
        }
    }

    /// Takes all frames, and leaves `empty` for the next one.
    fn take(&mut self, empty: &mut BytesMut) -> Vec<BytesMut> {
        self.settle();
        if !self.open.is_empty() {
            self.full.push(std::mem::replace(&mut self.open, std::mem::take(empty)));
        }
        std::mem::take(&mut self.full)
    }

    /// Adds a message of `len` bytes to the last frame, or begins another.
    fn add(&mut self, len: usize, write: impl FnOnce(&mut BytesMut)) {
        let is_full = self.count == BATCH_MAX || self.open.len() + len > BATCH_BYTES_MAX;
        if is_full && !self.open.is_empty() {
            let next = BytesMut::with_capacity(self.open.len());
            self.full.push(std::mem::replace(&mut self.open, next));
        }
        if self.open.is_empty() {
            self.open.put_bytes(0, PREFIX);
            self.count = 0;
        }
        encode_key(BATCH_FIELD, WireType::LengthDelimited, &mut self.open);
        encode_varint(len as u64, &mut self.open);
        write(&mut self.open);
        self.count += 1;
        let frame = (self.open.len() - PREFIX) as u32;
        self.open[..PREFIX].copy_from_slice(&frame.to_le_bytes());
    }
}

/// The queue of one connection's writer, for frames that are batches of `T`: a message whose field 1 repeats `T`.
///
/// Unbounded by itself, like an [`Outbox`](crate::frame::Outbox), and bounded by the same windows.
pub struct Written<T> {
    queue: Arc<(Mutex<Frames<T>>, Notify)>,
}

impl<T> Clone for Written<T> {
    fn clone(&self) -> Self {
        Written { queue: self.queue.clone() }
    }
}

impl<T> Default for Written<T> {
    fn default() -> Self {
        Written { queue: Arc::default() }
    }
}

impl<T: Message> Written<T> {
    fn frames(&self) -> MutexGuard<'_, Frames<T>> {
        self.queue.0.lock().expect("never poisoned: nothing panics under this lock")
    }

    /// Queues a message; dropped when the connection is closed.
    pub fn push(&self, message: &T) {
        self.push_raw(message.encoded_len(), |out| message.encode(out).expect("BytesMut grows"));
    }

    /// Queues a message of `len` bytes that `write` appends: for whoever has its parts, and not the message.
    pub fn push_raw(&self, len: usize, write: impl FnOnce(&mut BytesMut)) {
        self.change(|frames| {
            frames.settle();
            frames.add(len, write);
        });
    }

    /// Queues a message before the last one, if that still waits and may be passed; else behind it.
    pub fn push_before(&self, message: &T, may_pass: impl FnOnce(&T) -> bool) {
        self.change(|frames| {
            if !frames.last.as_ref().is_some_and(may_pass) {
                frames.settle();
            }
            frames.add_message(message);
        });
    }

    /// Adds to the last message, if that still waits (`None`), or makes another, which may be added to.
    pub fn merge(&self, add: impl FnOnce(Option<&mut T>) -> Option<T>) {
        self.change(|frames| {
            if let Some(next) = add(frames.last.as_mut()) {
                frames.settle();
                frames.last = Some(next);
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut Frames<T>)) {
        let mut frames = self.frames();
        if frames.closed {
            return;
        }
        let was_empty = frames.is_empty();
        change(&mut frames);
        if was_empty && !frames.is_empty() {
            self.queue.1.notify_one();
        }
    }

    /// Ends the writer once everything queued is written.
    pub fn close(&self) {
        self.frames().closed = true;
        self.queue.1.notify_one();
    }

    /// Takes all frames that are queued, and leaves `empty` for the next one.
    pub fn try_take(&self, empty: &mut BytesMut) -> Vec<BytesMut> {
        self.frames().take(empty)
    }

    /// Waits until something is queued; false once closed and empty.
    pub async fn wait(&self) -> bool {
        loop {
            {
                let frames = self.frames();
                if !frames.is_empty() {
                    return true;
                }
                if frames.closed {
                    return false;
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
        while self.wait().await {
            for frame in self.try_take(&mut empty) {
                writer.write_all(&frame).await?;
                empty = emptied(frame);
            }
        }
        writer.shutdown().await
    }
}

/// A buffer to leave in the place of the next, unless this one has become too large to keep.
pub fn emptied(mut frames: BytesMut) -> BytesMut {
    frames.clear();
    if frames.capacity() <= BUFFER_KEPT_MAX { frames } else { BytesMut::new() }
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
    fn what_comes_last_is_added_to_until_something_else_comes() {
        let written = Written::<DaemonMsg>::default();
        let add = |revision: u64| {
            written.merge(|last| match last.and_then(|last| last.msg.as_mut()) {
                Some(daemon_msg::Msg::Committed(committed)) => {
                    committed.revision += revision;
                    None
                }
                _ => Some(message(revision, 0)),
            });
        };
        let read = || {
            let frames = written.try_take(&mut BytesMut::new());
            let mut decoder = frame::Decoder::default();
            frames.iter().for_each(|frame| decoder.buffer().extend_from_slice(frame));
            let frame = decoder.next_message::<ToClient>().expect("a frame");
            frame.map_or(Vec::new(), |frame| frame.msgs)
        };
        add(1);
        add(2);
        written.push_before(&message(50, 1), |_| true);
        add(4);
        written.push_before(&message(60, 1), |_| false);
        add(8);
        written.push(&message(70, 1));
        add(16);
        let expected =
            [message(50, 1), message(7, 0), message(60, 1), message(8, 0), message(70, 1), message(16, 0)];
        assert_eq!(read(), expected);
        assert_eq!(read(), []);
    }

    #[test]
    fn frames_are_those_of_the_message_that_repeats_them() {
        let mut frames = Frames::<DaemonMsg>::default();
        let msgs: Vec<DaemonMsg> = (0..3).map(|n| message(n, 18)).collect();
        for msg in &msgs {
            frames.add_message(msg);
        }
        let mut expected = BytesMut::new();
        frame::encode(&ToClient { msgs }, &mut expected);
        assert_eq!(frames.take(&mut BytesMut::new()), [expected]);
    }
}
