//! A value before it is put.

use crate::client::Client;
use crate::error::Error;
use crate::reference::{AnyRef, ObjectRef};
use crate::value::{self, Encoded};
use mobula_base::ObjectId;
use mobula_proto::{INLINE_MAX, Shared};
use serde::Serialize;

/// A value is put with so many copies at most.
pub const REPLICAS_MAX: u32 = 64;

/// A value that is to be put, see [`Client::put_with`].
#[must_use = "nothing is put before `store`"]
pub struct Put<'a, T> {
    client: &'a Client,
    value: &'a T,
    replicas: u32,
}

impl Client {
    /// A value to be put, with options:
    ///
    /// ```no_run
    /// # fn main() -> Result<(), mobula::Error> {
    /// # let client = mobula::Client::connect(mobula::ConnectOptions::default())?;
    /// let model = client.put_with(&vec![0.5_f32; 1 << 20]).replicas(3).store()?;
    /// # drop(model);
    /// # Ok(())
    /// # }
    /// ```
    pub fn put_with<'a, T: Serialize>(&'a self, value: &'a T) -> Put<'a, T> {
        Put { client: self, value, replicas: 0 }
    }
}

impl<T: Serialize> Put<'_, T> {
    /// On so many nodes it shall be (1 to [`REPLICAS_MAX`]; what is less or more counts as that). When one of them dies,
    /// another node gets a copy; where there are fewer nodes, all have one, and those that join later get theirs. Nothing
    /// that counts is dropped for room, though it may be written to a file.
    ///
    /// A value that a task puts this way outlives its node without running the task again. A small one (up to 100 KB)
    /// that a driver puts is in the control store, on every head, whatever is said here.
    pub fn replicas(mut self, nodes: u32) -> Self {
        self.replicas = nodes.clamp(1, REPLICAS_MAX);
        self
    }

    /// Puts it: does not wait for copies.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub fn store(self) -> Result<ObjectRef<T>, Error> {
        let Some(size) = self.large()? else { return self.small() };
        let id = self.client.context.next_put();
        let placed = self.client.place_value(id, self.value, size)?;
        Ok(self.placed(id, placed))
    }

    /// As [`Put::store`], without blocking the thread.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn store_async(self) -> Result<ObjectRef<T>, Error> {
        let Some(size) = self.large()? else { return self.small() };
        let id = self.client.context.next_put();
        let placed = self.client.place_value_async(id, self.value, size).await?;
        Ok(self.placed(id, placed))
    }

    /// Its size, if it lies in shared memory.
    fn large(&self) -> Result<Option<usize>, Error> {
        let size = value::size(self.value).map_err(Error::Value)?;
        Ok(Some(size).filter(|size| *size > INLINE_MAX))
    }

    fn small(self) -> Result<ObjectRef<T>, Error> {
        let encoded = value::encode(self.value).map_err(Error::Value)?;
        Ok(self.client.made(self.client.context.next_put(), encoded, None, self.replicas))
    }

    fn placed(self, id: ObjectId, (placed, references): (Shared, Vec<AnyRef>)) -> ObjectRef<T> {
        let encoded = Encoded { references, ..Encoded::default() };
        self.client.made(id, encoded, Some(placed.crc), self.replicas)
    }
}
