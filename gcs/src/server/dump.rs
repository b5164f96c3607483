//! A shard's content for a backup: the newest snapshot, once it covers all that was committed when it
//! was asked for, in pieces.

use super::{Service, Site};
use crate::cold;
use crate::raft::group::{Group, NotDone};
use crate::snapshot::{self, Parcel};
use bytes::Bytes;
use mobula_base::disk::Disk;
use mobula_proto as proto;
use prost::Message;
use proto::{DumpHead, DumpPart};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

/// Bytes per piece.
const PIECE: usize = 1 << 20;
/// Pieces on their way to a slow reader.
const QUEUE: usize = 4;
/// A snapshot must be there within this.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(60);
/// Pause between looks whether it is.
const LOOK: Duration = Duration::from_millis(50);
/// It is asked for again this often: openraft makes one at a time.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What a call answers.
pub type Parts = std::pin::Pin<Box<dyn futures::Stream<Item = Result<DumpPart, Status>> + Send>>;

/// Starts sending; ends with the reader.
pub fn send(service: Service, request: proto::DumpRequest) -> Parts {
    let (to, from) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let failed = match dump(&service, &request, &to).await {
            Ok(()) => return,
            Err(failed) => failed,
        };
        to.send(Ok(failed)).await.ok();
    });
    let next = |mut from: mpsc::Receiver<_>| async move { Some((from.recv().await?, from)) };
    Box::pin(futures::stream::unfold(from, next))
}

type Sender = mpsc::Sender<Result<DumpPart, Status>>;

async fn dump(service: &Service, request: &proto::DumpRequest, to: &Sender) -> Result<(), DumpPart> {
    let refuse = |refused: String| DumpPart { refused, ..Default::default() };
    let (running, group) = service.shard(request.cluster, request.shard).map_err(refuse)?;
    match group.read_index().await {
        Ok(()) => {}
        Err(NotDone::NotLeader(_)) => {
            return Err(DumpPart { elsewhere: super::admin::elsewhere(group), ..Default::default() });
        }
        Err(NotDone::Busy(why) | NotDone::Unknown(why)) => return Err(refuse(why)),
    }
    let site: &Site = &service.0;
    let (term, index, parcel) = newest(&site.disk, group).await.map_err(refuse)?;
    let (tasks, keys) = group.replica.with(|state| (state.tasks.len(), state.kv.count()));
    let head = DumpHead {
        shard: group.shard,
        index,
        term,
        dump_bytes: parcel.dump.len() as u64,
        cold: parcel.cold.encode_to_vec().into(),
        cluster: running.identity.cluster,
        tasks,
        keys,
    };
    let part = |data: Bytes| Ok(DumpPart { data, ..Default::default() });
    // A reader that went away ends it.
    let gone = |_| DumpPart::default();
    to.send(Ok(DumpPart { head: Some(head), ..Default::default() })).await.map_err(gone)?;
    for start in (0..parcel.dump.len()).step_by(PIECE) {
        let end = (start + PIECE).min(parcel.dump.len());
        to.send(part(parcel.dump.slice(start..end))).await.map_err(gone)?;
    }
    for file in &parcel.cold.files {
        let mut at = 0;
        while at < file.len {
            let len = PIECE.min((file.len - at) as usize);
            let path = cold::path(group.shard, file.number);
            let read = move |disk: &dyn Disk| disk.open(&path, false)?.read_at(at, len);
            let bytes = snapshot::on_disk(site.disk.clone(), read).await;
            let bytes = bytes.and_then(|bytes| match bytes.len() == len {
                true => Ok(bytes),
                false => Err(io::Error::other("a file of the snapshot is too short")),
            });
            let bytes = bytes.map_err(|error| refuse(format!("the snapshot cannot be read: {error}")))?;
            at += len as u64;
            to.send(part(bytes.into())).await.map_err(gone)?;
        }
    }
    to.send(Ok(DumpPart { last: true, ..Default::default() })).await.map_err(gone)
}

/// A snapshot that covers all that is applied now.
async fn newest(disk: &Arc<dyn Disk>, group: &Group) -> Result<(u64, u64, Parcel), String> {
    let applied = *group.replica.applied().borrow();
    let until = Instant::now() + SNAPSHOT_DEADLINE;
    let mut asked: Option<Instant> = None;
    while group.snapshot_index() < applied {
        if Instant::now() >= until {
            return Err(format!("no snapshot within {SNAPSHOT_DEADLINE:?}: is the disk full?"));
        }
        if asked.is_none_or(|asked| asked.elapsed() > ASK_EVERY) {
            asked = Some(Instant::now());
            group.replica.want_snapshot();
            group.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
        }
        tokio::time::sleep(LOOK).await;
    }
    let shard = group.shard;
    let load =
        move |disk: &dyn Disk| snapshot::load_newest(disk, shard).map_err(crate::error::Error::into_io);
    let loaded = snapshot::on_disk(disk.clone(), load).await.map_err(|error| error.to_string())?;
    let (meta, parcel) = loaded.ok_or("there is no snapshot yet")?;
    let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
    Ok((term, index, parcel))
}
