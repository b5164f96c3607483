//! Reads in the background what is only read when it is needed, so that rot is found while the
//! peers still have what this replica has lost.

use crate::damage;
use crate::error::Error;
use crate::log::{LogWriter, segments};
use crate::server::Running;
use crate::snapshot::{self, on_disk};
use mobula_base::disk::Disk;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Bytes read per second, on average.
const RATE: u64 = 8 << 20;
/// Pause between rounds.
const PAUSE: Duration = Duration::from_secs(600);
/// Pause before the first: starting up has read everything just now.
const FIRST: Duration = Duration::from_secs(60);

/// Reads everything again and again; on damage the replica is condemned (unless it is `alone`: then
/// nobody could give it another state) and its log stops. Never ends otherwise.
pub async fn forever(running: Arc<Running>, disk: Arc<dyn Disk>, alone: bool) {
    tokio::time::sleep(FIRST).await;
    loop {
        if let Err(error) = round(&running.log, &disk, running.identity.shards).await {
            let why = error.to_string();
            if !alone && error.condemns() {
                let marked = on_disk(disk.clone(), move |disk| damage::condemn(disk, &error)).await;
                if let Err(error) = marked {
                    tracing::error!(%error, "the damage could not be noted; it will be found again");
                }
            }
            running.log.stop(why);
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads all segments that are whole, and all snapshots.
///
/// # Errors
/// Damage, or a disk that fails.
pub async fn round(log: &LogWriter, disk: &Arc<dyn Disk>, shards: u32) -> Result<(), Error> {
    for number in log.sealed() {
        let read = on_disk(disk.clone(), move |disk| Ok(segments::verify(disk, number))).await;
        match read.map_err(|error| Error::storage(segments::DIR, error))? {
            Ok(bytes) => tokio::time::sleep(time_for(bytes)).await,
            // It was recycled meanwhile.
            Err(_) if !log.sealed().contains(&number) => {}
            Err(error) => return Err(error),
        }
    }
    for shard in 0..shards {
        let read = on_disk(disk.clone(), move |disk| Ok(snapshot::verify(disk, shard))).await;
        let bytes = read.map_err(|error| Error::storage(snapshot::DIR, error))??;
        tokio::time::sleep(time_for(bytes)).await;
    }
    Ok(())
}

/// Whether an error says that a file is gone, because a newer one has replaced it.
pub fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Storage { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

fn time_for(bytes: u64) -> Duration {
    Duration::from_millis(bytes * 1000 / RATE)
}
