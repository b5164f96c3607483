//! The queue in front of the segments. It is drained whole: one write, one sync, then every waiter
//! is told. So batches are as large as the disk is slow.

use super::files::{Files, SEGMENT_BYTES};
use super::item::{LogIdentity, Record};
use super::recover::Recovered;
use crate::error::Error;
use mobula_base::disk::Disk;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// What may wait in the queue, in KiB; appends wait for room beyond.
const LOG_QUEUE_KIB: u32 = 256 << 10;
/// At most this much goes into one write, in bytes.
const BATCH_BYTES: usize = 32 << 20;
/// After this long without work the writer notes what is synced.
const MARK_AFTER: Duration = Duration::from_millis(10);

/// Told when a record is durable, or why it is not.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Job {
    record: Record,
    done: Option<Done>,
    _room: Option<OwnedSemaphorePermit>,
}

enum Message {
    Job(Job),
    Close(oneshot::Sender<()>),
}

enum Queue {
    Thread(mpsc::Sender<Message>),
    Task(tokio::sync::mpsc::UnboundedSender<Message>),
}

#[derive(Default)]
struct Shared {
    syncs: AtomicU64,
    stopped: Mutex<Option<String>>,
    pinning: Mutex<Vec<u32>>,
}

/// A handle to the one writer of a head's log.
#[derive(Clone)]
pub struct LogWriter {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
}

impl LogWriter {
    /// Recovers the log and starts its writer: a thread where the disk may block, else a task.
    ///
    /// # Errors
    /// Damage, or a disk that fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
    ) -> Result<(Self, BTreeMap<u32, Recovered>), Error> {
        LogWriter::open_with(disk, identity, SEGMENT_BYTES)
    }

    pub(super) fn open_with(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
        segment_bytes: u64,
    ) -> Result<(Self, BTreeMap<u32, Recovered>), Error> {
        let blocks = disk.blocks();
        let (files, found) = Files::open(disk, identity, segment_bytes)?;
        let shared = Arc::new(Shared::default());
        let mut writer = Writer { files, shared: shared.clone(), dirty: true };
        let queue = if blocks {
            let (queue, jobs) = mpsc::channel();
            let named = std::thread::Builder::new().name("mobula-log".into());
            let spawned = named.spawn(move || writer.run_on_thread(&jobs));
            spawned.map_err(|error| Error::storage("the log's thread", error))?;
            Queue::Thread(queue)
        } else {
            let (queue, jobs) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move { writer.run_as_task(jobs).await });
            Queue::Task(queue)
        };
        let room = Arc::new(Semaphore::new(LOG_QUEUE_KIB as usize));
        Ok((LogWriter { queue: Arc::new(queue), shared, room }, found))
    }

    /// Queues a record, waiting for room; `done` hears when it is durable. Records are written in
    /// the order in which these calls return.
    pub async fn submit(&self, record: Record, done: Option<Done>) {
        let kib = ((record.weight() >> 10) as u32 + 1).min(LOG_QUEUE_KIB);
        let room = self.room.clone().acquire_many_owned(kib).await.ok();
        self.send(Message::Job(Job { record, done, _room: room }));
    }

    /// Queues a record that may wait for the next write.
    pub fn submit_lazy(&self, record: Record) {
        self.send(Message::Job(Job { record, done: None, _room: None }));
    }

    /// Writes a record; durable when this returns.
    ///
    /// # Errors
    /// The disk failed; the log has stopped.
    pub async fn write(&self, record: Record) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |result| _ = tell.send(result));
        self.submit(record, Some(done)).await;
        told.await.unwrap_or_else(|_| Err(io::Error::other("the log's writer has ended")))
    }

    /// Ends the writer once everything queued is written, and closes the files.
    pub async fn close(&self) {
        let (tell, told) = oneshot::channel();
        self.send(Message::Close(tell));
        // An error means that it has ended already.
        told.await.ok();
    }

    /// Syncs so far.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Why the log has stopped, if it has.
    pub fn stopped(&self) -> Option<String> {
        self.shared.stopped.lock().expect("nothing panics under this lock").clone()
    }

    /// Shards that should be snapshotted so that old segments can go.
    pub fn pinning(&self) -> Vec<u32> {
        self.shared.pinning.lock().expect("nothing panics under this lock").clone()
    }

    fn send(&self, message: Message) {
        // When the writer has ended the message is dropped, and with it whoever would be told.
        match &*self.queue {
            Queue::Thread(queue) => _ = queue.send(message),
            Queue::Task(queue) => _ = queue.send(message),
        }
    }
}

struct Writer {
    files: Files,
    shared: Arc<Shared>,
    /// Whether something was written since the last mark.
    dirty: bool,
}

impl Writer {
    fn run_on_thread(&mut self, jobs: &mpsc::Receiver<Message>) {
        loop {
            let first = if self.dirty {
                match jobs.recv_timeout(MARK_AFTER) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.idle();
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Ok(first) => first,
                }
            } else {
                let Ok(first) = jobs.recv() else { return };
                first
            };
            if let Some(close) = self.drain(first, || jobs.try_recv().ok()) {
                close.send(()).ok();
                return;
            }
        }
    }

    async fn run_as_task(&mut self, mut jobs: tokio::sync::mpsc::UnboundedReceiver<Message>) {
        loop {
            let first = if self.dirty {
                match tokio::time::timeout(MARK_AFTER, jobs.recv()).await {
                    Err(_) => {
                        self.idle();
                        continue;
                    }
                    Ok(first) => first,
                }
            } else {
                jobs.recv().await
            };
            let Some(first) = first else { return };
            if let Some(close) = self.drain(first, || jobs.try_recv().ok()) {
                close.send(()).ok();
                return;
            }
        }
    }

    /// Writes everything that is queued; a sender to tell when the writer is to end.
    fn drain(
        &mut self,
        first: Message,
        mut more: impl FnMut() -> Option<Message>,
    ) -> Option<oneshot::Sender<()>> {
        let (mut records, mut waiters, mut rooms, mut weight) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let (mut next, mut close) = (Some(first), None);
        while let Some(message) = next {
            match message {
                Message::Close(tell) => {
                    close = Some(tell);
                    break;
                }
                Message::Job(job) => {
                    weight += job.record.weight();
                    records.push(job.record);
                    waiters.extend(job.done);
                    rooms.extend(job._room);
                }
            }
            next = if weight < BATCH_BYTES { more() } else { None };
        }
        let result = self.commit(&records);
        for done in waiters {
            done(result.as_ref().map(|_| ()).map_err(|why| io::Error::other(why.clone())));
        }
        close
    }

    fn commit(&mut self, records: &[Record]) -> Result<(), String> {
        if let Some(why) = &*self.shared.stopped.lock().expect("nothing panics under this lock") {
            return Err(why.clone());
        }
        match self.files.commit(records) {
            Ok(syncs) => {
                self.shared.syncs.fetch_add(syncs, Ordering::Relaxed);
                self.dirty = true;
                *self.shared.pinning.lock().expect("nothing panics under this lock") = self.files.pinning();
                Ok(())
            }
            Err(error) => Err(self.stop(&error)),
        }
    }

    fn idle(&mut self) {
        self.dirty = false;
        if self.shared.stopped.lock().expect("nothing panics under this lock").is_none()
            && let Err(error) = self.files.idle()
        {
            self.stop(&error);
        }
    }

    /// After a failed write or sync nobody knows what is on the disk: nothing more is written.
    fn stop(&mut self, error: &io::Error) -> String {
        let why = if error.kind() == io::ErrorKind::StorageFull {
            format!(
                "the disk is full ({error}): free space and restart this head; nothing acknowledged is lost"
            )
        } else {
            format!("the log could not be written ({error}): check the disk and restart this head")
        };
        tracing::error!(why, "log stopped");
        *self.shared.stopped.lock().expect("nothing panics under this lock") = Some(why.clone());
        why
    }
}
