//! Writing large values into shared memory.
//!
//! What is there already (an earlier attempt of the task made it) is not written again: an id denotes one
//! value. Whether it is the same value is looked at here, where the bytes are.

use crate::client::Client;
use crate::copy::copy_in;
use crate::error::Error;
use crate::options::OnDivergence;
use crate::reference::AnyRef;
use crate::value;
use mobula_base::ObjectId;
use mobula_proto::{Create, Created, Failure, FailureKind, Shared, client_msg, object_bytes};
use serde::Serialize;

impl Client {
    /// As [`Client::place`], of a value that is encoded where it is to lie: no copy of it is made on the way.
    pub(crate) fn place_value<T: Serialize + ?Sized>(
        &self,
        id: ObjectId,
        value: &T,
        size: usize,
    ) -> Result<(Shared, Vec<AnyRef>), Error> {
        self.ask_room(id, size);
        self.fill_with(&self.wait_created(id)?, value, size)
    }

    /// As [`Client::place_value`], without blocking the thread.
    pub(crate) async fn place_value_async<T: Serialize + ?Sized>(
        &self,
        id: ObjectId,
        value: &T,
        size: usize,
    ) -> Result<(Shared, Vec<AnyRef>), Error> {
        self.ask_room(id, size);
        self.fill_with(&self.wait_created_async(id).await?, value, size)
    }

    /// Brings a value into shared memory, waiting for room; sealing it is the caller's message.
    pub(crate) fn place(&self, id: ObjectId, bytes: &[u8]) -> Result<Shared, Error> {
        self.ask_room(id, bytes.len());
        self.fill(self.wait_created(id)?, bytes)
    }

    /// As [`Client::place`], without blocking the thread.
    pub(crate) async fn place_async(&self, id: ObjectId, bytes: &[u8]) -> Result<Shared, Error> {
        self.ask_room(id, bytes.len());
        self.fill(self.wait_created_async(id).await?, bytes)
    }

    fn ask_room(&self, id: ObjectId, size: usize) {
        let create = Create { object: object_bytes(id), size: size as u64 };
        self.send(client_msg::Msg::Create(create));
    }

    fn fill(&self, created: Created, bytes: &[u8]) -> Result<Shared, Error> {
        if let Some(failure) = created.failure {
            return Err(failure.into());
        }
        let room = (!created.exists).then_some(&self.shell.region);
        let crc = copy_in(room, created.offset, bytes).finalize();
        let made = Shared { offset: created.offset, len: bytes.len() as u64, crc };
        self.same(&created, made)
    }

    fn fill_with<T: Serialize + ?Sized>(
        &self,
        created: &Created,
        value: &T,
        size: usize,
    ) -> Result<(Shared, Vec<AnyRef>), Error> {
        if let Some(failure) = &created.failure {
            return Err(failure.clone().into());
        }
        let (mut at, mut crc) = (0, crc32fast::Hasher::new());
        let references = value::encode_into(value, |piece| {
            let room = (!created.exists && at + piece.len() <= size).then_some(&self.shell.region);
            crc.combine(&copy_in(room, created.offset + at as u64, piece));
            at += piece.len();
        });
        let references = references.map_err(Error::Value)?;
        if at != size {
            return Err(Error::Value(format!(
                "a value was encoded as {size} bytes, then as {at}: it must not change while it is put"
            )));
        }
        let made = Shared { offset: created.offset, len: size as u64, crc: crc.finalize() };
        Ok((self.same(created, made)?, references))
    }

    /// What was made is what is there, if something was.
    fn same(&self, created: &Created, made: Shared) -> Result<Shared, Error> {
        match created.there.filter(|_| created.exists) {
            Some(there) if (there.len, there.crc) != (made.len, made.crc) => match self.options.on_divergence
            {
                OnDivergence::Accept => Ok(there),
                OnDivergence::Fail => Err(diverged().into()),
            },
            Some(_) | None => Ok(made),
        }
    }
}

fn diverged() -> Failure {
    Failure::new(
        FailureKind::FailureDiverged,
        "the task made other bytes than an attempt before it: it is not deterministic",
    )
}
