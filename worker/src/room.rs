//! Writing large values into shared memory.
//!
//! What is there already (an earlier attempt of the task made it) is not written again: an id denotes one
//! value. Whether it is the same value is looked at here, where the bytes are.

use crate::client::Client;
use crate::error::Error;
use crate::options::OnDivergence;
use mobula_base::ObjectId;
use mobula_proto::{Create, Created, Failure, FailureKind, Shared, client_msg, object_bytes};

impl Client {
    /// Brings a value into shared memory, waiting for room; sealing it is the caller's message.
    pub(crate) fn place(&self, id: ObjectId, bytes: &[u8]) -> Result<Shared, Error> {
        self.ask_room(id, bytes);
        self.fill(self.wait_created(id)?, bytes)
    }

    /// As [`Client::place`], without blocking the thread.
    pub(crate) async fn place_async(&self, id: ObjectId, bytes: &[u8]) -> Result<Shared, Error> {
        self.ask_room(id, bytes);
        self.fill(self.wait_created_async(id).await?, bytes)
    }

    fn ask_room(&self, id: ObjectId, bytes: &[u8]) {
        let create = Create { object: object_bytes(id), size: bytes.len() as u64 };
        self.send(client_msg::Msg::Create(create));
    }

    fn fill(&self, created: Created, bytes: &[u8]) -> Result<Shared, Error> {
        if let Some(failure) = created.failure {
            return Err(failure.into());
        }
        let made = Shared { offset: created.offset, len: bytes.len() as u64, crc: crc32fast::hash(bytes) };
        if !created.exists {
            self.shell.region.write(made.offset, bytes);
            return Ok(made);
        }
        match created.there {
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
