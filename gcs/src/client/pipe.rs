//! Proposals of all callers to one head over one stream.

use futures::StreamExt;
use mobula_net::grpc::Channel;
use mobula_net::pipe;
use mobula_proto as proto;
use proto::control_store_client::ControlStoreClient;

/// A stream of proposals.
pub type Pipe = pipe::Pipe<proto::ProposeRequest, proto::ProposeReply>;

/// A pipe over `store`, which is opened now.
pub fn open(mut store: ControlStoreClient<Channel>) -> Pipe {
    let tagged = |(tag, request)| proto::TaggedPropose { tag, request: Some(request) };
    let message =
        move |many: pipe::Many<_>| proto::ProposeMany { requests: many.into_iter().map(tagged).collect() };
    let untagged = |reply: proto::TaggedReply| (reply.tag, reply.reply.unwrap_or_default());
    let answers = move |many: proto::ReplyMany| many.replies.into_iter().map(untagged).collect();
    Pipe::open(
        |request| request.command.len(),
        move |messages| async move {
            let replies = store.propose_stream(messages.map(message)).await?.into_inner();
            Ok(replies.map(move |many| many.map(answers)).boxed())
        },
    )
}
