//! The only place where a head reads the wall clock. It decides nothing and orders nothing: it is for
//! people who compare events with what they remember.

use bytes::Bytes;
use mobula_proto as proto;
use prost::Message;
use std::time::{SystemTime, UNIX_EPOCH};

/// First byte of an encoded command that holds a node's traffic.
const STREAM: u8 = 1 << 3 | 2;

/// This machine's clock.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// An encoded command with the time at which this leader took it, where it may become an event.
pub fn stamped(command: Bytes, unix_ms: u64) -> Bytes {
    if command.first() == Some(&STREAM) {
        return command;
    }
    // The last value of a field counts.
    let time = proto::Command { op: None, unix_ms };
    let mut stamped = Vec::with_capacity(command.len() + time.encoded_len());
    stamped.extend_from_slice(&command);
    stamped.extend_from_slice(&time.encode_to_vec());
    stamped.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::command::Op;

    #[test]
    fn the_latest_leader_to_take_a_command_sets_its_time_and_a_stream_has_none() {
        let decoded = |bytes: Bytes| proto::Command::decode(bytes).expect("good");
        let forget = proto::Command::from(Op::Forget(proto::ForgetJob { job: 7 }));
        let twice = stamped(stamped(forget.encode_to_vec().into(), 5), 9);
        assert_eq!(decoded(twice), proto::Command { unix_ms: 9, ..forget });
        let batch = proto::StreamBatch { incarnation: 1, first_seq: 1, items: Vec::new() };
        let stream = Bytes::from(proto::Command::from(Op::Stream(batch)).encode_to_vec());
        assert_eq!(stamped(stream.clone(), 5), stream);
    }
}
