//! Many proposals over one stream.

use super::Service;
use futures::StreamExt;
use mobula_net::pipe;
use mobula_proto as proto;
use tonic::Streaming;

/// The answers of one stream.
pub type Replies = pipe::Replies<proto::ReplyMany>;

/// Answers what comes in; ends with the caller.
pub fn serve(service: Service, requests: Streaming<proto::ProposeMany>) -> Replies {
    let untagged = |asked: proto::TaggedPropose| (asked.tag, asked.request.unwrap_or_default());
    let many = move |many: proto::ProposeMany| many.requests.into_iter().map(untagged).collect();
    let answer = move |request| {
        let service = service.clone();
        async move { proto::ProposeReply { result: Some(service.proposed(request).await) } }
    };
    let tagged = |(tag, reply)| proto::TaggedReply { tag, reply: Some(reply) };
    pipe::serve(requests.map(move |message| message.map(many)).boxed(), answer, move |many| {
        proto::ReplyMany { replies: many.into_iter().map(tagged).collect() }
    })
}
