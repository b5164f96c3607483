//! Typed references to objects.

use crate::client::Client;
use crate::error::Error;
use crate::value;
use mobula_base::ObjectId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// A reference to a value of type `T` that exists, will exist, or has failed.
///
/// It can be cloned, passed to tasks as an argument (they then get the value), and put inside
/// values (they then get the reference).
///
/// The object is there for as long as somebody refers to it: this program by a clone of the reference,
/// a task that has not ended by its arguments, or a value that holds the reference and is itself
/// referred to. With the last reference its memory is freed, and in the end its lineage, too.
pub struct ObjectRef<T> {
    inner: Arc<Inner>,
    marker: PhantomData<fn() -> T>,
}

struct Inner {
    id: ObjectId,
    client: Option<Client>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(client) = &self.client {
            client.forget(self.id);
        }
    }
}

/// A reference whatever the type of its value: as long as it is there, this program refers to the object.
#[derive(Clone)]
pub struct AnyRef(Arc<Inner>);

impl AnyRef {
    /// The object's id.
    pub fn id(&self) -> ObjectId {
        self.0.id
    }
}

impl std::fmt::Debug for AnyRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AnyRef({})", self.0.id)
    }
}

/// Each once, in the order of their ids.
pub(crate) fn distinct(references: &mut Vec<AnyRef>) {
    references.sort_unstable_by_key(AnyRef::id);
    references.dedup_by_key(|reference| reference.id());
}

impl<T> Clone for ObjectRef<T> {
    fn clone(&self) -> Self {
        ObjectRef { inner: self.inner.clone(), marker: PhantomData }
    }
}

impl<T> std::fmt::Debug for ObjectRef<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ObjectRef({})", self.inner.id)
    }
}

impl<T> ObjectRef<T> {
    pub(crate) fn new(id: ObjectId, client: Option<Client>) -> Self {
        ObjectRef { inner: Arc::new(Inner { id, client }), marker: PhantomData }
    }

    /// The object's id.
    pub fn id(&self) -> ObjectId {
        self.inner.id
    }

    pub(crate) fn any(&self) -> AnyRef {
        AnyRef(self.inner.clone())
    }

    fn client(&self) -> Result<&Client, Error> {
        self.inner
            .client
            .as_ref()
            .ok_or_else(|| Error::Disconnected("the reference was decoded outside a task".into()))
    }

    /// Whether the value (or its failure) is known to exist, without waiting.
    pub fn is_ready(&self) -> bool {
        self.inner.client.as_ref().is_some_and(|c| c.is_ready(self.inner.id))
    }
}

impl<T: DeserializeOwned> ObjectRef<T> {
    /// Waits for the value.
    ///
    /// # Errors
    /// The task failed, or the connection to the daemon ended.
    pub fn get(&self) -> Result<T, Error> {
        self.get_within(None)
    }

    /// Waits for the value, no longer than `timeout`.
    ///
    /// # Errors
    /// As [`ObjectRef::get`], and [`Error::Timeout`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        self.get_within(Some(timeout))
    }

    fn get_within(&self, timeout: Option<Duration>) -> Result<T, Error> {
        let client = self.client()?;
        let _viewing = client.viewing(self.inner.id);
        let bytes = client.get_bytes(self.inner.id, timeout)?;
        take_for(client, || value::decode(bytes.as_slice())).map_err(Error::Value)
    }

    /// Waits for the value without blocking the thread: for `async` tasks.
    ///
    /// # Errors
    /// As [`ObjectRef::get`].
    pub async fn get_async(&self) -> Result<T, Error> {
        let client = self.client()?;
        let _viewing = client.viewing(self.inner.id);
        let bytes = client.get_bytes_async(self.inner.id).await?;
        take_for(client, || value::decode(bytes.as_slice())).map_err(Error::Value)
    }
}

thread_local! {
    /// What has been found so far in the value that is being encoded on this thread.
    static FOUND: RefCell<Option<Vec<AnyRef>>> = const { RefCell::new(None) };
    /// For whom a value is being decoded on this thread.
    static TAKER: RefCell<Option<Client>> = const { RefCell::new(None) };
}

/// Runs `encode` and says which references it encoded, each once. Nested uses (a `Serialize` that encodes
/// a part by itself) count for the outer one, too: the part may lie inside it.
pub(crate) fn collect<R>(encode: impl FnOnce() -> R) -> (R, Vec<AnyRef>) {
    /// Puts back what the outer use had, also when `encode` panics.
    struct Outer(Option<Vec<AnyRef>>);
    impl Drop for Outer {
        fn drop(&mut self) {
            FOUND.with(|found| found.replace(self.0.take()));
        }
    }
    let mut outer = Outer(FOUND.with(|found| found.replace(Some(Vec::new()))));
    let result = encode();
    let mut references = FOUND.with(|found| found.replace(None)).unwrap_or_default();
    if !references.is_empty() {
        distinct(&mut references);
        if let Some(outer) = &mut outer.0 {
            outer.extend(references.iter().cloned());
        }
    }
    (result, references)
}

/// Runs `decode`; references in the value are `client`'s.
fn take_for<R>(client: &Client, decode: impl FnOnce() -> R) -> R {
    struct Outer(Option<Client>);
    impl Drop for Outer {
        fn drop(&mut self) {
            TAKER.with(|taker| taker.replace(self.0.take()));
        }
    }
    let _outer = Outer(TAKER.with(|taker| taker.replace(Some(client.clone()))));
    decode()
}

impl<T> Serialize for ObjectRef<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        FOUND.with(|found| {
            if let Some(found) = &mut *found.borrow_mut() {
                found.push(self.any());
            }
        });
        self.inner.id.to_bytes().as_slice().serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for ObjectRef<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        let id = ObjectId::from_bytes(&bytes).ok_or_else(|| serde::de::Error::custom("not an object id"))?;
        let client = TAKER.with(|taker| taker.borrow().clone()).or_else(crate::context::try_current);
        if let Some(client) = &client {
            client.take_up(id);
        }
        Ok(ObjectRef::new(id, client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::{JobId, TaskId};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    fn reference(n: u32) -> ObjectRef<u64> {
        ObjectRef::new(TaskId::root(JobId(1)).output(n), None)
    }

    fn found(value: &impl Serialize) -> Vec<u32> {
        value::encode(value).expect("encodes").references.iter().map(|r| r.id().slot).collect()
    }

    /// Encodes its part by itself, or panics there.
    struct Part(Option<ObjectRef<u64>>);

    impl Serialize for Part {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let part = self.0.as_ref().expect("a part");
            serializer.serialize_bytes(&value::encode(part).expect("encodes").bytes)
        }
    }

    #[test]
    fn references_inside_a_value_are_found_each_once() {
        let (two, seven) = (reference(2), reference(7));
        assert_eq!(found(&(1u64, "none")), Vec::<u32>::new());
        assert_eq!(found(&vec![Some(seven.clone()), None, Some(two.clone()), Some(seven.clone())]), [2, 7]);
        assert_eq!(found(&(reference(9), Part(Some(two)), seven)), [2, 7, 9]);
        // Outside an encoding nothing is kept.
        let text = postcard::to_stdvec(&reference(3)).expect("encodes");
        assert_eq!(text.len(), 23);
        assert!(FOUND.with(|found| found.borrow().is_none()));
    }

    #[test]
    fn a_panic_leaves_no_trace() {
        let torn = catch_unwind(AssertUnwindSafe(|| found(&(reference(1), Part(None)))));
        assert!(torn.is_err());
        assert_eq!(found(&reference(4)), [4], "what the panic had found is gone");
    }

    #[test]
    fn too_many_references_are_refused() {
        let most: Vec<_> = (0..value::REFERENCES_MAX as u32).map(reference).collect();
        assert_eq!(value::encode(&most).expect("just fits").references.len(), value::REFERENCES_MAX);
        let more: Vec<_> = (0..=value::REFERENCES_MAX as u32).map(reference).collect();
        let refused = value::encode(&more).expect_err("one too many");
        assert!(refused.contains("16385 objects, at most 16384"), "{refused}");
        assert_eq!(value::size(&more).expect_err("before there is room for it"), refused);
    }
}
