//! Many requests over one stream: whatever has queued up on either side travels as one message.
//!
//! A call of its own costs HTTP/2 headers, a stream and a task on both sides; here a request costs
//! its bytes. Answers carry the request's tag and come in any order.

use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt, Stream, StreamExt};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Requests that may wait to be sent.
const QUEUE: usize = 4096;
/// Requests, or answers, in one message at most.
const IN_MESSAGE: usize = 1024;
/// Bytes in one message at most, unless a single request is larger.
const MESSAGE_BYTES: usize = 1 << 20;
/// Messages on their way into a connection.
const MESSAGES: usize = 2;
/// Requests of one stream that a server works on at once; no more are read meanwhile.
const UNDER_WAY: usize = 8192;

/// What travels as one message, with tags.
pub type Many<T> = Vec<(u64, T)>;
type Told<A> = oneshot::Sender<Result<A, Status>>;

/// The asking end. Clones share it; the stream ends with the last of them.
pub struct Pipe<Q, A>(mpsc::Sender<(Q, Told<A>)>);

impl<Q, A> Clone for Pipe<Q, A> {
    fn clone(&self) -> Self {
        Pipe(self.0.clone())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Pipe<Q, A> {
    /// Opens a pipe: `connect` is given the messages to send and returns the answers; `weigh` says
    /// how many bytes a request is.
    pub fn open<C, F>(weigh: fn(&Q) -> usize, connect: C) -> Self
    where
        C: FnOnce(ReceiverStream<Many<Q>>) -> F + Send + 'static,
        F: Future<Output = Result<BoxStream<'static, Result<Many<A>, Status>>, Status>> + Send + 'static,
    {
        let (queue, queued) = mpsc::channel(QUEUE);
        tokio::spawn(run(weigh, connect, queued));
        Pipe(queue)
    }

    /// Whether it still leads anywhere.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Sends one request; its answer. The caller sets the deadline.
    ///
    /// # Errors
    /// The connection has ended: whether the request was carried out is unknown.
    pub async fn ask(&self, request: Q) -> Result<A, Status> {
        let (told, answer) = oneshot::channel();
        let ended = || Status::unavailable("the connection has ended");
        self.0.send((request, told)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

/// Who waits for which answer; `None` once the stream has ended.
struct Waiting<A>(Mutex<Option<BTreeMap<u64, Told<A>>>>);

impl<A> Waiting<A> {
    fn map(&self) -> MutexGuard<'_, Option<BTreeMap<u64, Told<A>>>> {
        self.0.lock().expect("nothing panics under this lock")
    }

    fn add(&self, tag: u64, told: Told<A>) {
        match &mut *self.map() {
            Some(map) => _ = map.insert(tag, told),
            None => _ = told.send(Err(Status::unavailable("the connection has ended"))),
        }
    }

    /// Whoever has stopped waiting is not told.
    fn tell(&self, answers: Many<A>) {
        let mut map = self.map();
        for (tag, answer) in answers {
            if let Some(told) = map.as_mut().and_then(|map| map.remove(&tag)) {
                told.send(Ok(answer)).ok();
            }
        }
    }

    fn end(&self, status: &Status) {
        for (_, told) in self.map().take().unwrap_or_default() {
            told.send(Err(status.clone())).ok();
        }
    }
}

async fn run<Q, A, C, F>(weigh: fn(&Q) -> usize, connect: C, queued: mpsc::Receiver<(Q, Told<A>)>)
where
    C: FnOnce(ReceiverStream<Many<Q>>) -> F,
    F: Future<Output = Result<BoxStream<'static, Result<Many<A>, Status>>, Status>>,
{
    let waiting = Arc::new(Waiting(Mutex::new(Some(BTreeMap::new()))));
    let (send, messages) = mpsc::channel(MESSAGES);
    let answers = async {
        let mut answers = match connect(ReceiverStream::new(messages)).await {
            Ok(answers) => answers,
            Err(status) => return status,
        };
        loop {
            match answers.next().await {
                Some(Ok(many)) => waiting.tell(many),
                Some(Err(status)) => return status,
                None => return Status::unavailable("the other end has ended the stream"),
            }
        }
    };
    let status = tokio::select! {
        biased;
        status = answers => status,
        () = gather(weigh, queued, send, &waiting) => Status::cancelled("nobody can ask any more"),
    };
    waiting.end(&status);
}

/// Turns what has queued up into messages. Ends when nobody can ask any more, or nobody listens.
async fn gather<Q, A>(
    weigh: fn(&Q) -> usize,
    mut queued: mpsc::Receiver<(Q, Told<A>)>,
    send: mpsc::Sender<Many<Q>>,
    waiting: &Waiting<A>,
) {
    let mut tag = 0;
    // Room first: so what queues up meanwhile is in the same message.
    while let Ok(room) = send.reserve().await {
        let Some(mut next) = queued.recv().await else { return };
        let (mut many, mut bytes) = (Vec::new(), 0);
        loop {
            let (request, told) = next;
            tag += 1;
            bytes += weigh(&request);
            waiting.add(tag, told);
            many.push((tag, request));
            if many.len() == IN_MESSAGE || bytes > MESSAGE_BYTES {
                break;
            }
            match queued.try_recv() {
                Ok(more) => next = more,
                Err(_) => break,
            }
        }
        room.send(many);
    }
}

/// The answers of one stream, as a server sends them.
pub struct Replies<M>(mpsc::Receiver<Result<M, Status>>);

impl<M> Stream for Replies<M> {
    type Item = Result<M, Status>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// The answering end: every request goes through `answer`, whatever is ready goes back as one
/// message, made by `wrap`. Ends with the asking end.
pub fn serve<Q, A, F, M>(
    mut requests: BoxStream<'static, Result<Many<Q>, Status>>,
    answer: impl Fn(Q) -> F + Send + Sync + 'static,
    wrap: impl Fn(Many<A>) -> M + Send + 'static,
) -> Replies<M>
where
    Q: Send + 'static,
    A: Send + 'static,
    F: Future<Output = A> + Send + 'static,
    M: Send + 'static,
{
    let (send, replies) = mpsc::channel(MESSAGES);
    tokio::spawn(async move {
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                biased;
                Some(first) = under_way.next() => {
                    let mut many = vec![first];
                    while many.len() < IN_MESSAGE
                        && let Some(Some(next)) = under_way.next().now_or_never()
                    {
                        many.push(next);
                    }
                    if send.send(Ok(wrap(many))).await.is_err() {
                        return;
                    }
                }
                message = requests.next(), if open && under_way.len() < UNDER_WAY => match message {
                    Some(Ok(many)) => under_way.extend(many.into_iter().map(|(tag, request)| {
                        let answered = answer(request);
                        async move { (tag, answered.await) }
                    })),
                    // The asking end has gone, or is done asking.
                    Some(Err(_)) | None => open = false,
                },
            }
        }
    });
    Replies(replies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A pipe whose other end is in this process.
    fn looped<F>(answer: impl Fn(u32) -> F + Send + Sync + 'static) -> Pipe<u32, u32>
    where
        F: Future<Output = u32> + Send + 'static,
    {
        Pipe::open(
            |_| 4,
            |messages| async move {
                let replies = serve(messages.map(Ok).boxed(), answer, |many| many);
                Ok(replies.boxed())
            },
        )
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_gets_its_own_answer_in_any_order() {
        let pipe = looped(|n| async move {
            tokio::time::sleep(Duration::from_millis(u64::from(n * 7 % 13))).await;
            n + 1000
        });
        let asked = (0..500).map(|n| pipe.ask(n));
        let answers: Vec<u32> = futures::future::join_all(asked)
            .await
            .into_iter()
            .map(|a| a.expect("the pipe is open"))
            .collect();
        assert_eq!(answers, (1000..1500).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_hears_of_the_end() {
        let pipe: Pipe<u32, u32> = Pipe::open(
            |_| 4,
            |mut messages| async move {
                // Reads one message and hangs up.
                let ended = async move {
                    messages.next().await;
                    None
                };
                Ok(futures::stream::once(ended).filter_map(|end: Option<_>| async { end }).boxed())
            },
        );
        let error = pipe.ask(1).await.expect_err("nobody answers");
        assert_eq!(error.code(), tonic::Code::Unavailable);
        assert!(pipe.ask(2).await.is_err());
        assert!(!pipe.is_open());
    }
}
