//! Values and arguments that are not what their reader thinks. The fuzz target (`fuzz/`) and the test
//! below call the same function.

use crate::args::{ArgBytes, ArgReader, FromArgs, Many};
use crate::reference::ObjectRef;
use crate::value::{self, Blob};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Bytes taken for values of all kinds. What is understood is written again and understood again.
pub fn values(bytes: &[u8]) {
    value::<u64>(bytes);
    value::<String>(bytes);
    value::<Option<Vec<u32>>>(bytes);
    value::<BTreeMap<String, (i64, bool)>>(bytes);
    value::<Result<Vec<String>, (char, u8)>>(bytes);
    value::<Blob>(bytes);
    drop(value::decode::<f64>(bytes));
    drop(value::decode::<Vec<ObjectRef<u64>>>(bytes));
    arguments(bytes);
}

fn value<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(read) = value::decode::<T>(bytes) else { return };
    let again = value::encode(&read).expect("plain data").bytes;
    assert_eq!(value::decode::<T>(&again).expect("our own"), read);
}

/// The bytes as arguments, cut where a zero is.
fn arguments(bytes: &[u8]) {
    let reader = || {
        let pieces = bytes.split(|byte| *byte == 0).map(Bytes::copy_from_slice);
        ArgReader::new(pieces.map(ArgBytes::Inline))
    };
    let mut many = reader();
    drop(Many::<u64>::take(&mut many));
    drop(many.finish());
    let mut mixed = reader();
    drop(String::take(&mut mixed));
    drop(<(u8, Vec<String>)>::take(&mut mixed));
    drop(mixed.finish());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            any::<BTreeMap<String, (i64, bool)>>().prop_map(|v| value::encode(&v).expect("plain").bytes),
            any::<Option<Vec<u32>>>().prop_map(|v| value::encode(&v).expect("plain").bytes),
            any::<Vec<u8>>(),
        ]
    }

    proptest! {
        #[test]
        fn values_that_are_something_else(
            mut bytes in encoded(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        ) {
            if !bytes.is_empty() {
                changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut bytes) = byte);
            }
            values(&bytes);
        }
    }
}
