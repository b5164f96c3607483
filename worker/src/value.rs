//! Values on the wire: serde through postcard. Values live no longer than their job, so the
//! format need not outlive a build; driver and worker are the same binary.

use crate::reference::{self, AnyRef};
use bytes::Bytes;
use mobula_proto::object_bytes;
use postcard::ser_flavors::Flavor;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Large bytes as a value: encoded by one copy instead of byte by byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Bytes);

impl std::ops::Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Blob(bytes.into())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Copy;
        impl Visitor<'_> for Copy {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Copy)
    }
}

/// So many references may lie inside one value, or inside the arguments of one task: they travel in its
/// record, and each is an edge in the control store.
pub const REFERENCES_MAX: usize = 16 * 1024;

/// An encoded value, and what lies inside it.
#[derive(Debug, Default)]
pub struct Encoded {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The references inside, each once, in the order of their ids. They are held until whoever is sent
    /// the bytes has been told of them.
    pub references: Vec<AnyRef>,
    /// What was returned in parts: then that is all there is ([`crate::split`]).
    pub elements: Vec<Encoded>,
    /// What is returned one after the other: then that is all there is ([`crate::streamed`]).
    pub(crate) flow: Option<crate::streamed::Flow>,
}

impl Encoded {
    /// The ids of the references, as they travel.
    pub fn contains(&self) -> Vec<Bytes> {
        self.references.iter().map(|reference| object_bytes(reference.id())).collect()
    }
}

/// Encodes a value.
///
/// # Errors
/// The type's `Serialize` refused, or there are more than [`REFERENCES_MAX`] references in it.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Encoded, String> {
    let (encoded, references) = reference::collect(|| postcard::to_stdvec(value));
    let name = std::any::type_name::<T>();
    let bytes = encoded.map_err(|e| format!("{name} cannot be encoded: {e}"))?;
    check_count(references.len()).map_err(|e| format!("a {name} {e}"))?;
    Ok(Encoded { bytes, references, ..Encoded::default() })
}

/// How many bytes a value is encoded as. It is walked, and nothing is written.
///
/// # Errors
/// As [`encode`]: whoever asks for room has a value that can be encoded.
pub(crate) fn size<T: Serialize + ?Sized>(value: &T) -> Result<usize, String> {
    let (size, references) = reference::collect(|| postcard::experimental::serialized_size(value));
    let name = std::any::type_name::<T>();
    check_count(references.len()).map_err(|e| format!("a {name} {e}"))?;
    size.map_err(|e| format!("{name} cannot be encoded: {e}"))
}

/// Encodes a value piece by piece: what is large in the value itself as it lies there, the rest in pieces small
/// enough to stay in the processor's cache. The references inside.
///
/// # Errors
/// As [`encode`].
pub(crate) fn encode_into<T: Serialize + ?Sized>(
    value: &T,
    take: impl FnMut(&[u8]),
) -> Result<Vec<AnyRef>, String> {
    let pieces = Pieces { open: Vec::with_capacity(PIECE), take };
    let (encoded, references) = reference::collect(|| postcard::serialize_with_flavor(value, pieces));
    let name = std::any::type_name::<T>();
    encoded.map_err(|e| format!("{name} cannot be encoded: {e}"))?;
    check_count(references.len()).map_err(|e| format!("a {name} {e}"))?;
    Ok(references)
}

/// Bytes of a piece that is put together here at most.
const PIECE: usize = 64 << 10;

/// Hands on what is encoded, in order.
struct Pieces<F> {
    open: Vec<u8>,
    take: F,
}

impl<F: FnMut(&[u8])> Pieces<F> {
    fn close(&mut self) {
        (self.take)(&self.open);
        self.open.clear();
    }
}

impl<F: FnMut(&[u8])> Flavor for Pieces<F> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        if self.open.len() == PIECE {
            self.close();
        }
        self.open.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.open.len() + bytes.len() > PIECE {
            self.close();
        }
        if bytes.len() < PIECE {
            self.open.extend_from_slice(bytes);
        } else {
            (self.take)(bytes);
        }
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<()> {
        self.close();
        Ok(())
    }
}

/// Whether so many references may lie in one place.
pub(crate) fn check_count(references: usize) -> Result<(), String> {
    if references <= REFERENCES_MAX {
        return Ok(());
    }
    Err(format!(
        "holds references to {references} objects, at most {REFERENCES_MAX} may lie in one value: put parts of it and \
         hold references to those"
    ))
}

/// Decodes a value; bytes left over are an error, too.
///
/// # Errors
/// The bytes are not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let name = std::any::type_name::<T>();
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(format!("{} bytes are left over after a {name}", rest.len())),
        Err(error) => Err(format!("{} bytes are not a {name}: {error}", bytes.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Two parts of bytes, as long as pieces are and longer, and small things between.
    fn part() -> impl Strategy<Value = (usize, u8)> {
        (prop_oneof![0usize..100, PIECE - 12..PIECE + 12, 2 * PIECE - 3..2 * PIECE + 3], any::<u8>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn pieces_are_what_the_whole_is(parts in prop::collection::vec((part(), any::<String>(), any::<u64>()), 0..4)) {
            let blob = |(len, fill): (usize, u8)| Blob::from(vec![fill; len]);
            let value: Vec<_> = parts.into_iter().map(|(part, text, n)| (text, blob(part), n)).collect();
            let whole = encode(&value).expect("plain data").bytes;
            let mut pieces = Vec::new();
            encode_into(&value, |piece| {
                pieces.extend_from_slice(piece);
            })
            .expect("plain data");
            prop_assert_eq!(size(&value).expect("plain data"), whole.len());
            prop_assert_eq!(pieces, whole);
        }
    }
}
