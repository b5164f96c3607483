//! Values on the wire: serde through postcard. Values live no longer than their job, so the
//! format need not outlive a build; driver and worker are the same binary.

use crate::reference::{self, AnyRef};
use bytes::Bytes;
use mobula_proto::object_bytes;
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
    Ok(Encoded { bytes, references })
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
