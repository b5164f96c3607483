//! The queue in front of the segments. It is drained whole: one write, one sync, then every waiter
//! is told. So batches are as large as the disk is slow.

use super::files::{Failure, Files};
use super::index::{Place, ShardIndex};
use super::item::{LogIdentity, Record};
use super::sizes::Sizes;
use super::spares::RETRY_FULL;
use crate::error::Error;
use bytes::Bytes;
use mobula_base::disk::Disk;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// What may wait in the queue, in KiB; appends wait for room beyond.
const LOG_QUEUE_KIB: u32 = 64 << 10;
/// At most this much goes into one write, in bytes.
const BATCH_BYTES: usize = 32 << 20;
/// After this long without work the writer notes what is synced.
const MARK_AFTER: Duration = Duration::from_millis(10);

/// Told where a record is once it is durable, or why it is not.
pub type Done = Box<dyn FnOnce(io::Result<Place>) + Send>;

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
    bytes: AtomicU64,
    full: AtomicBool,
    news: Mutex<News>,
}

#[derive(Default)]
struct News {
    stopped: Option<String>,
    pinning: Vec<u32>,
    sealed: Vec<u64>,
    committed: BTreeMap<u32, Bytes>,
}

impl Shared {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("nothing panics under this lock")
    }
}

/// A handle to the one writer of a head's log.
#[derive(Clone)]
pub struct LogWriter {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
    sync_seconds: Histogram,
}

impl LogWriter {
    /// Recovers the log and starts its writer: a thread where the disk may block, else a task.
    ///
    /// # Errors
    /// Damage, or a disk that fails.
    pub fn open(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
    ) -> Result<(Self, BTreeMap<u32, ShardIndex>), Error> {
        let sizes = Sizes::of_a_head(disk.blocks());
        LogWriter::open_with(disk, identity, sizes)
    }

    pub(super) fn open_with(
        disk: Arc<dyn Disk>,
        identity: LogIdentity,
        sizes: Sizes,
    ) -> Result<(Self, BTreeMap<u32, ShardIndex>), Error> {
        let blocks = disk.blocks();
        let (files, found) = Files::open(disk.clone(), identity, sizes)?;
        let shared = Arc::new(Shared::default());
        shared.bytes.store(files.bytes(), Ordering::Relaxed);
        let sync_seconds = files.sync_seconds();
        let waiting = VecDeque::new();
        let mut writer = Writer { files, shared: shared.clone(), dirty: true, waiting, places: Vec::new() };
        let queue = if blocks {
            let (queue, jobs) = mpsc::channel();
            let named = std::thread::Builder::new().name("mobula-log".into());
            let spawned = named.spawn(move || writer.run_on_thread(&jobs));
            spawned.map_err(|error| Error::storage("the log's thread", error))?;
            Queue::Thread(queue)
        } else {
            let (queue, jobs) = tokio::sync::mpsc::unbounded_channel();
            tokio::spawn(async move { writer.run_as_task(&*disk, jobs).await });
            Queue::Task(queue)
        };
        let room = Arc::new(Semaphore::new(LOG_QUEUE_KIB as usize));
        Ok((LogWriter { queue: Arc::new(queue), shared, room, sync_seconds }, found))
    }

    /// Queues a record, waiting for room; `done` hears when it is durable. Records are written in
    /// the order in which these calls return.
    pub async fn submit(&self, record: Record, done: Option<Done>) {
        // Held until the record is durable, so that a full disk cannot fill the memory.
        let kib = ((record.weight() >> 10) as u32 + 1).min(LOG_QUEUE_KIB);
        let room = self.room.clone().acquire_many_owned(kib).await.ok();
        self.send(Message::Job(Job { record, done, _room: room }));
    }

    /// Notes what is committed, to be written with the next batch.
    pub fn note_committed(&self, shard: u32, log_id: Bytes) {
        self.shared.news().committed.insert(shard, log_id);
    }

    /// Writes a record; durable when this returns.
    ///
    /// # Errors
    /// The disk failed; the log has stopped.
    pub async fn write(&self, record: Record) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |result| _ = tell.send(result.map(|_| ())));
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
        self.shared.news().stopped.clone()
    }

    /// Stops the log for good: what it holds is not to be trusted any more.
    pub fn stop(&self, why: String) {
        tracing::error!(why, "log stopped");
        self.shared.news().stopped.get_or_insert(why);
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// How long syncs of segments took.
    pub fn sync_seconds(&self) -> Histogram {
        self.sync_seconds.clone()
    }

    /// Whether the disk is full: only what frees space is to be proposed.
    pub fn full(&self) -> bool {
        self.shared.full.load(Ordering::Relaxed)
    }

    /// Shards that should be snapshotted so that old segments can go.
    pub fn pinning(&self) -> Vec<u32> {
        self.shared.news().pinning.clone()
    }

    /// Numbers of the segments that are whole and will not change until they go.
    pub fn sealed(&self) -> Vec<u64> {
        self.shared.news().sealed.clone()
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
    /// What is not written yet; more than nothing between batches only while the disk is full.
    waiting: VecDeque<Job>,
    places: Vec<Place>,
}

impl Writer {
    /// How long to wait for work before there is something to do without.
    fn patience(&self) -> Option<Duration> {
        if !self.waiting.is_empty() || self.shared.full.load(Ordering::Relaxed) {
            Some(RETRY_FULL)
        } else {
            self.dirty.then_some(MARK_AFTER)
        }
    }

    fn run_on_thread(&mut self, jobs: &mpsc::Receiver<Message>) {
        loop {
            let first = match self.patience() {
                None => jobs.recv().ok(),
                Some(patience) => match jobs.recv_timeout(patience) {
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.idle();
                        continue;
                    }
                    received => received.ok(),
                },
            };
            let Some(first) = first else { return };
            if let Some(close) = self.drain(first, || jobs.try_recv().ok()) {
                close.send(()).ok();
                return;
            }
        }
    }

    async fn run_as_task(
        &mut self,
        disk: &dyn Disk,
        mut jobs: tokio::sync::mpsc::UnboundedReceiver<Message>,
    ) {
        loop {
            let first = match self.patience() {
                None => jobs.recv().await,
                Some(patience) => match tokio::time::timeout(patience, jobs.recv()).await {
                    Err(_) => {
                        self.idle();
                        continue;
                    }
                    Ok(first) => first,
                },
            };
            let Some(first) = first else { return };
            let lag = disk.lag();
            if !lag.is_zero() {
                tokio::time::sleep(lag).await;
            }
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
        let mut weight = 0;
        let (mut next, mut close) = (Some(first), None);
        while let Some(message) = next {
            match message {
                Message::Close(tell) => {
                    close = Some(tell);
                    break;
                }
                Message::Job(job) => {
                    weight += job.record.weight();
                    self.waiting.push_back(job);
                }
            }
            next = if weight < BATCH_BYTES { more() } else { None };
        }
        self.write();
        if close.is_some() {
            self.refuse("this head is shutting down, and its disk is full");
        }
        close
    }

    /// Writes what waits, and tells whoever asked.
    fn write(&mut self) {
        let (stopped, committed) = {
            let mut news = self.shared.news();
            (news.stopped.clone(), std::mem::take(&mut news.committed))
        };
        if let Some(why) = stopped {
            return self.refuse(&why);
        }
        self.files.note_committed(committed);
        if self.waiting.is_empty() {
            return;
        }
        self.places.clear();
        let written = self.files.commit(self.waiting.iter().map(|job| &job.record), &mut self.places);
        self.shared.syncs.store(self.files.syncs(), Ordering::Relaxed);
        self.shared.bytes.store(self.files.bytes(), Ordering::Relaxed);
        if let Err(Failure::Broken(error)) = written {
            let why = self.stop(&error);
            return self.refuse(&why);
        }
        for place in self.places.drain(..) {
            let job = self.waiting.pop_front();
            if let Some(done) = job.and_then(|job| job.done) {
                done(Ok(place));
            }
        }
        self.dirty = true;
        self.report();
    }

    fn report(&mut self) {
        let full = self.files.full() || !self.waiting.is_empty();
        self.shared.full.store(full, Ordering::Relaxed);
        let mut news = self.shared.news();
        news.pinning = self.files.pinning();
        if news.sealed.len() + 1 != self.files.segments()
            || news.sealed.last() != self.files.last_sealed().as_ref()
        {
            news.sealed = self.files.sealed();
        }
    }

    /// Nobody asks for anything: a mark, and another look at a disk that was full.
    fn idle(&mut self) {
        if !self.waiting.is_empty() {
            return self.write();
        }
        if self.shared.full.load(Ordering::Relaxed) {
            self.report();
        }
        if !std::mem::take(&mut self.dirty) || self.shared.news().stopped.is_some() {
            return;
        }
        self.files.note_committed(std::mem::take(&mut self.shared.news().committed));
        if let Err(error) = self.files.idle() {
            self.stop(&error);
        }
    }

    fn refuse(&mut self, why: &str) {
        for job in self.waiting.drain(..) {
            if let Some(done) = job.done {
                done(Err(io::Error::other(why.to_owned())));
            }
        }
    }

    /// After a failed write or sync nobody knows what is on the disk: nothing more is written.
    fn stop(&mut self, error: &io::Error) -> String {
        let why = format!("the log could not be written ({error}): check the disk and restart this head");
        tracing::error!(why, "log stopped");
        self.shared.news().stopped.get_or_insert(why).clone()
    }
}
