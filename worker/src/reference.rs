//! Typed references to objects.

use crate::client::Client;
use crate::error::Error;
use crate::value;
use mobula_base::ObjectId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

/// A reference to a value of type `T` that exists, will exist, or has failed.
///
/// It can be cloned, passed to tasks as an argument (they then get the value), and put inside
/// values (they then get the reference).
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
        let bytes = self.client()?.get_bytes(self.inner.id, None)?;
        value::decode(bytes.as_slice()).map_err(Error::Value)
    }

    /// Waits for the value, no longer than `timeout`.
    ///
    /// # Errors
    /// As [`ObjectRef::get`], and [`Error::Timeout`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, Error> {
        let bytes = self.client()?.get_bytes(self.inner.id, Some(timeout))?;
        value::decode(bytes.as_slice()).map_err(Error::Value)
    }

    /// Waits for the value without blocking the thread: for `async` tasks.
    ///
    /// # Errors
    /// As [`ObjectRef::get`].
    pub async fn get_async(&self) -> Result<T, Error> {
        let bytes = self.client()?.get_bytes_async(self.inner.id).await?;
        value::decode(bytes.as_slice()).map_err(Error::Value)
    }
}

impl<T> Serialize for ObjectRef<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.inner.id.to_bytes().as_slice().serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for ObjectRef<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        let id = ObjectId::from_bytes(&bytes).ok_or_else(|| serde::de::Error::custom("not an object id"))?;
        let client = crate::context::try_current();
        if let Some(client) = &client {
            client.remember(id);
        }
        Ok(ObjectRef::new(id, client))
    }
}
