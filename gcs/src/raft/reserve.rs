//! What is still taken while the disk of the leader is full: what frees space, and what keeps the
//! cluster safe (R14).

use bytes::Bytes;
use mobula_proto as proto;
use prost::Message;
use proto::command::Op;
use proto::{call, slot_command, stream_item};

/// Whether an encoded command may use the reserve.
pub fn admits(command: &Bytes) -> bool {
    // What cannot be decoded changes nothing: no space for that.
    proto::Command::decode(command.clone()).ok().and_then(|command| command.op).is_some_and(|op| frees(&op))
}

fn frees(op: &Op) -> bool {
    match op {
        Op::DeclareDead(_) | Op::Fence(_) | Op::Init(_) | Op::Forget(_) => true,
        Op::Call(call) => matches!(
            call.op,
            Some(
                call::Op::KvDelete(_)
                    | call::Op::JobEnd(_)
                    | call::Op::NodeJoin(_)
                    | call::Op::NodeLeave(_)
                    | call::Op::GroupRemove(_)
            )
        ),
        Op::Stream(batch) => batch.items.iter().all(|item| {
            use stream_item::Item::{Done, Release, RunDone, RunRelease, Unname};
            matches!(item.item, Some(Done(_) | RunDone(_) | Release(_) | RunRelease(_) | Unname(_)))
        }),
        Op::Batch(batch) => batch.commands.iter().all(admits),
        // What moves frees nothing here.
        Op::Slots(command) => !matches!(command.op, Some(slot_command::Op::Content(_))),
        // Membership is how a head whose disk stays full is replaced.
        _ => !matches!(op, Op::Call(_) | Op::Stream(_)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(op: Op) -> Bytes {
        proto::Command::from(op).encode_to_vec().into()
    }

    #[test]
    fn only_what_frees_space_is_taken() {
        let call = |op| encoded(Op::Call(proto::Call { session: 1, seq: 1, op: Some(op) }));
        assert!(admits(&call(call::Op::KvDelete(proto::KvDelete::default()))));
        assert!(!admits(&call(call::Op::KvPut(proto::KvPut::default()))));
        assert!(admits(&encoded(Op::Forget(proto::ForgetJob { job: 1 }))));
        let stream = |item| {
            let items = vec![proto::StreamItem { item: Some(item) }];
            encoded(Op::Stream(proto::StreamBatch { incarnation: 1, first_seq: 1, items }))
        };
        let done = stream(stream_item::Item::Done(proto::Done::default()));
        let submit = stream(stream_item::Item::Submit(proto::TaskSpec::default()));
        assert!(admits(&done) && !admits(&submit));
        let both = proto::CommandBatch { commands: vec![done.clone(), submit] };
        assert!(!admits(&encoded(Op::Batch(both))));
        assert!(admits(&encoded(Op::Batch(proto::CommandBatch { commands: vec![done] }))));
    }
}
