//! What every task costs on a link, written from its parts: no message is built, and no id copied to the heap.
//!
//! Each function is two: how many bytes its [`DaemonMsg`](crate::DaemonMsg) takes, and the bytes. The tests hold
//! them to the generated encoding.

use crate::{TaskSpec, Value};
use bytes::{BufMut, BytesMut};
use mobula_base::ObjectId;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len, message, uint32};

const RUN: u32 = 2;
const READY: u32 = 3;
/// Fields of `RunTask`, and of `ObjectReady`.
const SPEC: u32 = 1;
const ATTEMPT: u32 = 2;
const OBJECT: u32 = 1;
const VALUE: u32 = 2;

/// A message within a message: its key, its length and itself.
fn within(field: u32, len: usize) -> usize {
    key_len(field) + encoded_len_varint(len as u64) + len
}

fn begin(field: u32, len: usize, out: &mut BytesMut) {
    encode_key(field, WireType::LengthDelimited, out);
    encode_varint(len as u64, out);
}

fn run_len(spec: &TaskSpec, attempt: u32) -> usize {
    let attempt = if attempt == 0 { 0 } else { uint32::encoded_len(ATTEMPT, &attempt) };
    message::encoded_len(SPEC, spec) + attempt
}

/// Bytes of the order to run a task that has neither arguments nor devices.
pub fn plain_run_len(spec: &TaskSpec, attempt: u32) -> usize {
    within(RUN, run_len(spec, attempt))
}

/// Writes that order.
pub fn write_plain_run(spec: &TaskSpec, attempt: u32, out: &mut BytesMut) {
    begin(RUN, run_len(spec, attempt), out);
    message::encode(SPEC, spec, out);
    if attempt != 0 {
        uint32::encode(ATTEMPT, &attempt, out);
    }
}

fn ready_fields(value: &Value) -> usize {
    within(OBJECT, ObjectId::LEN) + within(VALUE, value.encoded_len())
}

/// Bytes of the word that an object is there.
pub fn ready_len(value: &Value) -> usize {
    within(READY, ready_fields(value))
}

/// Writes that word.
pub fn write_ready(object: ObjectId, value: &Value, out: &mut BytesMut) {
    begin(READY, ready_fields(value), out);
    begin(OBJECT, ObjectId::LEN, out);
    out.put_slice(&object.to_bytes());
    message::encode(VALUE, value, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DaemonMsg, ObjectReady, Output, RunTask, daemon_msg, object_bytes, task_bytes, value};
    use mobula_base::{JobId, TaskId};
    use proptest::prelude::*;

    fn written(len: usize, write: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out);
        assert_eq!(out.len(), len, "the length that was foretold");
        out
    }

    proptest! {
        #[test]
        fn terse_is_what_is_generated(attempt in 0u32..400, place in 0u64..2000, text in "[a-z]{0,200}", which in 0..3u8) {
            let task = TaskId::new(JobId(3), TaskId::root(JobId(3)), 0, place);
            let spec = TaskSpec {
                id: task_bytes(task),
                job: 3,
                function: place,
                nested: vec![text.clone().into_bytes().into()],
                ..TaskSpec::default()
            };
            let order = RunTask { spec: Some(spec.clone()), attempt, ..RunTask::default() };
            let order = DaemonMsg { msg: Some(daemon_msg::Msg::Run(order)) }.encode_to_vec();
            let len = plain_run_len(&spec, attempt);
            prop_assert_eq!(&written(len, |out| write_plain_run(&spec, attempt, out))[..], &order[..]);

            let value = Value { value: match which {
                0 => None,
                1 => Some(value::Value::Inline(text.into_bytes().into())),
                _ => Some(value::Value::Elsewhere(Output { crc: attempt, size: place })),
            }};
            let object = task.output(0);
            let ready = ObjectReady { object: object_bytes(object), value: Some(value.clone()) };
            let ready = DaemonMsg { msg: Some(daemon_msg::Msg::Ready(ready)) }.encode_to_vec();
            prop_assert_eq!(&written(ready_len(&value), |out| write_ready(object, &value, out))[..], &ready[..]);
        }
    }
}
