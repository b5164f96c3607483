//! Proposals of all callers to one head over one stream: whatever has queued up is one message.

use mobula_proto as proto;
use proto::control_store_client::ControlStoreClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Requests that may wait to be sent.
const QUEUE: usize = 4096;
/// Requests in one message at most.
const REQUESTS: usize = 512;
/// Bytes of commands in one message at most, unless a single one is larger.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages on their way into the connection.
const MESSAGES: usize = 2;

type Told = oneshot::Sender<Result<proto::ProposeReply, Status>>;

/// A stream of proposals to one head. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct Pipe(mpsc::Sender<(proto::ProposeRequest, Told)>);

/// Who waits for which answer; `None` once the stream has ended.
#[derive(Default)]
struct Waiting(Mutex<Option<BTreeMap<u64, Told>>>);

impl Waiting {
    fn map(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Told>>> {
        self.0.lock().expect("nothing panics under this lock")
    }

    fn add(&self, tag: u64, told: Told) {
        match &mut *self.map() {
            Some(map) => _ = map.insert(tag, told),
            None => _ = told.send(Err(Status::unavailable("the connection has ended"))),
        }
    }

    fn end(&self, status: &Status) {
        for (_, told) in self.map().take().unwrap_or_default() {
            told.send(Err(status.clone())).ok();
        }
    }
}

impl Pipe {
    /// A pipe over `store`, which is opened now.
    pub fn open(store: ControlStoreClient<Channel>) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        tokio::spawn(run(store, queued));
        Pipe(queue)
    }

    /// Whether it still leads anywhere.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Sends one request; its answer. The caller sets the deadline.
    ///
    /// # Errors
    /// The connection has ended: the outcome is unknown.
    pub async fn propose(&self, request: proto::ProposeRequest) -> Result<proto::ProposeReply, Status> {
        let (told, answer) = oneshot::channel();
        let ended = || Status::unavailable("the connection has ended");
        self.0.send((request, told)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

async fn run(store: ControlStoreClient<Channel>, queued: mpsc::Receiver<(proto::ProposeRequest, Told)>) {
    let waiting = Arc::new(Waiting(Mutex::new(Some(BTreeMap::new()))));
    let (send, messages) = mpsc::channel(MESSAGES);
    let gather = gather(queued, send, waiting.clone());
    let answers = receive(store, messages, &waiting);
    tokio::pin!(gather);
    let status = tokio::select! {
        biased;
        status = answers => status,
        // Nobody can ask any more; whoever has asked is not forgotten.
        () = &mut gather => Status::cancelled("the client is gone"),
    };
    waiting.end(&status);
}

/// Turns what has queued up into messages. Ends when nobody can ask any more, or nobody listens.
async fn gather(
    mut queued: mpsc::Receiver<(proto::ProposeRequest, Told)>,
    send: mpsc::Sender<proto::ProposeMany>,
    waiting: Arc<Waiting>,
) {
    let mut tag = 0;
    // Room first: so what queues up meanwhile is in the same message.
    while let Ok(room) = send.reserve().await {
        let Some(mut next) = queued.recv().await else { return };
        let (mut requests, mut bytes) = (Vec::new(), 0);
        loop {
            let (request, told) = next;
            tag += 1;
            bytes += request.command.len();
            waiting.add(tag, told);
            requests.push(proto::TaggedPropose { tag, request: Some(request) });
            if requests.len() == REQUESTS || bytes > MESSAGE_BYTES {
                break;
            }
            match queued.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
        room.send(proto::ProposeMany { requests });
    }
}

/// Hands out answers until the stream ends; why it did.
async fn receive(
    mut store: ControlStoreClient<Channel>,
    messages: mpsc::Receiver<proto::ProposeMany>,
    waiting: &Waiting,
) -> Status {
    let mut answers: Streaming<proto::ReplyMany> =
        match store.propose_stream(ReceiverStream::new(messages)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return status,
        };
    loop {
        match answers.message().await {
            Ok(Some(many)) => {
                let mut map = waiting.map();
                let Some(map) = map.as_mut() else { return Status::unavailable("the stream has ended") };
                for reply in many.replies {
                    if let Some(told) = map.remove(&reply.tag) {
                        // Whoever has stopped waiting is not told.
                        told.send(Ok(reply.reply.unwrap_or_default())).ok();
                    }
                }
            }
            Ok(None) => return Status::unavailable("the head has ended the stream"),
            Err(status) => return status,
        }
    }
}
