//! Many proposals over one stream: answers go back as they come, whatever is ready as one message.

use super::Service;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use mobula_proto as proto;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// Requests of one stream that are under way; no more are read meanwhile.
const UNDER_WAY: usize = 8192;
/// Answers in one message at most.
const REPLIES: usize = 1024;
/// Messages that may wait for a slow reader.
const MESSAGES: usize = 16;

/// The answers of one stream.
pub struct Replies(mpsc::Receiver<Result<proto::ReplyMany, Status>>);

impl Stream for Replies {
    type Item = Result<proto::ReplyMany, Status>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// Answers what comes in; ends with the caller.
pub fn serve(service: Service, requests: Streaming<proto::ProposeMany>) -> Replies {
    let (send, replies) = mpsc::channel(MESSAGES);
    tokio::spawn(run(service, requests, send));
    Replies(replies)
}

async fn run(
    service: Service,
    mut requests: Streaming<proto::ProposeMany>,
    send: mpsc::Sender<Result<proto::ReplyMany, Status>>,
) {
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        tokio::select! {
            biased;
            Some(reply) = under_way.next() => {
                let mut replies = vec![reply];
                while replies.len() < REPLIES
                    && let Some(Some(reply)) = under_way.next().now_or_never()
                {
                    replies.push(reply);
                }
                if send.send(Ok(proto::ReplyMany { replies })).await.is_err() {
                    return;
                }
            }
            message = requests.message(), if open && under_way.len() < UNDER_WAY => match message {
                Ok(Some(many)) => under_way.extend(many.requests.into_iter().map(|request| answer(&service, request))),
                // The caller has gone, or is done asking.
                Ok(None) | Err(_) => open = false,
            },
        }
    }
}

async fn answer(service: &Service, request: proto::TaggedPropose) -> proto::TaggedReply {
    let result = Some(service.proposed(request.request.unwrap_or_default()).await);
    proto::TaggedReply { tag: request.tag, reply: Some(proto::ProposeReply { result }) }
}
