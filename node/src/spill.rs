//! Files of objects that left memory: written durably before the memory is used again, read back and
//! checked, found again after a restart.
//!
//! Bytes go piece by piece between the region and the thread that may block, so that nothing touches the
//! region after the life that it belongs to.

use mobula_base::ObjectId;
use mobula_base::disk::{Disk, DiskFile};
use mobula_objstore::Region;
use mobula_objstore::depot::File;
use mobula_objstore::spill_file::{Damage, FileId, HEADER_BYTES, Header};
use std::io;
use std::sync::Arc;

/// Bytes written or read at once.
pub const CHUNK: usize = 1 << 20;
/// A file that is not complete is called so at the end.
const UNFINISHED: &str = ".tmp";
/// All files lie at the root of their disk.
const DIR: &str = "";

/// Why an object is not in its file, or not in memory again.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// There is no room on the disk: make some, and it is tried again.
    #[error("the disk for spilled objects is full: free some of it; whoever needs memory waits until then")]
    DiskFull,
    /// The disk does not do as it is told: look at it.
    #[error("the disk for spilled objects failed: {0}")]
    Disk(#[source] io::Error),
    /// The file has not what was written: the copy is gone.
    #[error("the file of a spilled object is damaged: {0}")]
    Damaged(#[from] Damage),
    /// This process is ending.
    #[error("this node is stopping")]
    Stopping,
}

impl From<io::Error> for SpillError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SpillError::DiskFull,
            _ => SpillError::Disk(error),
        }
    }
}

/// Runs `work` where it may block.
async fn apart<T, F>(disk: &Arc<dyn Disk>, work: F) -> Result<T, SpillError>
where
    T: Send + 'static,
    F: FnOnce(&dyn Disk) -> Result<T, SpillError> + Send + 'static,
{
    if !disk.blocks() {
        return work(&**disk);
    }
    let disk = disk.clone();
    tokio::task::spawn_blocking(move || work(&*disk)).await.map_err(|_| SpillError::Stopping)?
}

/// Writes an object that lies at `offset` to its file. Once this is `Ok` the file outlives a power cut.
///
/// # Errors
/// The disk did not take it; nothing is left of the file then, or will be with the next start.
pub async fn write(
    disk: Arc<dyn Disk>,
    region: &Region,
    object: ObjectId,
    file: File,
    offset: u64,
) -> Result<(), SpillError> {
    let name = file.id(object).name();
    let result = write_all(&disk, region, &name, &file.header(object), offset).await;
    if result.is_err() {
        let unfinished = format!("{name}{UNFINISHED}");
        let _ = apart(&disk, move |disk| Ok(disk.remove(&unfinished)?)).await;
    }
    result
}

async fn write_all(
    disk: &Arc<dyn Disk>,
    region: &Region,
    name: &str,
    header: &Header,
    offset: u64,
) -> Result<(), SpillError> {
    let (unfinished, head) = (format!("{name}{UNFINISHED}"), header.encode());
    let mut out: Box<dyn DiskFile> = apart(disk, {
        let unfinished = unfinished.clone();
        move |disk| {
            let mut out = disk.open(&unfinished, true)?;
            out.set_len(0)?;
            out.write_at(0, &head)?;
            Ok(out)
        }
    })
    .await?;
    let mut crc = crc32fast::Hasher::new();
    let mut at = 0;
    while at < header.len {
        let len = (CHUNK as u64).min(header.len - at);
        // Copied here, where nothing else runs: the life that has the region may end before the write does.
        let bytes = region.view(offset + at, len).to_vec();
        (out, crc) = apart(disk, move |_| {
            crc.update(&bytes);
            out.write_at(HEADER_BYTES as u64 + at, &bytes)?;
            Ok((out, crc))
        })
        .await?;
        at += len;
    }
    if crc.finalize() != header.crc {
        // What was sealed is not what lies there: whatever did that must not become durable.
        return Err(Damage::Bytes.into());
    }
    let (name, len) = (name.to_owned(), header.len);
    apart(disk, move |disk| {
        out.sync()?;
        // Its pages are of no use to the cache: the object is in memory or not needed.
        out.forget(0, HEADER_BYTES as u64 + len);
        disk.rename(&unfinished, &name)?;
        disk.sync_dir(DIR)?;
        Ok(())
    })
    .await
}

/// Opens the file of an object and checks what it says about itself.
async fn open(disk: &Arc<dyn Disk>, object: ObjectId, file: File) -> Result<Box<dyn DiskFile>, SpillError> {
    let (name, header) = (file.id(object).name(), file.header(object));
    apart(disk, move |disk| {
        let mut from = disk.open(&name, false)?;
        let found = Header::decode(&from.read_at(0, HEADER_BYTES)?)?;
        if found != header {
            return Err(Damage::Name.into());
        }
        if from.len()? != HEADER_BYTES as u64 + header.len {
            return Err(Damage::Length.into());
        }
        Ok(from)
    })
    .await
}

/// Bytes of an object from its file, one piece after the other, checked at the end.
pub struct Pieces {
    disk: Arc<dyn Disk>,
    from: Option<Box<dyn DiskFile>>,
    len: u64,
    want: u32,
    at: u64,
    crc: crc32fast::Hasher,
}

impl Pieces {
    /// Starts to read an object.
    ///
    /// # Errors
    /// There is no such file, or not as it was written.
    pub async fn open(disk: Arc<dyn Disk>, object: ObjectId, file: File) -> Result<Self, SpillError> {
        let from = Some(open(&disk, object, file).await?);
        Ok(Pieces { disk, from, len: file.len, want: file.crc, at: 0, crc: crc32fast::Hasher::new() })
    }

    /// The next piece; `None` when all were read and are what was written.
    ///
    /// # Errors
    /// The disk failed, or the bytes are not what was written.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, SpillError> {
        let (at, len) = (self.at, (CHUNK as u64).min(self.len - self.at) as usize);
        if len == 0 {
            let whole = self.crc.clone().finalize() == self.want;
            return if whole { Ok(None) } else { Err(Damage::Bytes.into()) };
        }
        let (mut from, mut crc) = (self.from.take().ok_or(SpillError::Stopping)?, self.crc.clone());
        let (from, crc, bytes) = apart(&self.disk, move |_| {
            let bytes = from.read_at(HEADER_BYTES as u64 + at, len)?;
            if bytes.len() != len {
                return Err(Damage::Length.into());
            }
            crc.update(&bytes);
            Ok((from, crc, bytes))
        })
        .await?;
        (self.from, self.crc) = (Some(from), crc);
        self.at += len as u64;
        Ok(Some(bytes))
    }
}

/// Reads an object back to `offset`.
///
/// # Errors
/// The disk failed, or the file is not what was written: either way the copy is gone.
pub async fn read(
    disk: Arc<dyn Disk>,
    region: &Region,
    object: ObjectId,
    file: File,
    offset: u64,
) -> Result<(), SpillError> {
    let mut pieces = Pieces::open(disk, object, file).await?;
    let mut at = offset;
    while let Some(bytes) = pieces.next().await? {
        region.write(at, &bytes);
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Removes a file. One that is not there is removed.
///
/// # Errors
/// The disk failed.
pub async fn remove(disk: Arc<dyn Disk>, file: FileId) -> Result<(), SpillError> {
    apart(&disk, move |disk| match disk.remove(&file.name()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    })
    .await
}

/// What an earlier life has left: whole files by their headers, in the order of their names. What is
/// unfinished, or not what it says, is removed. The bytes are checked when they are read.
///
/// # Errors
/// The disk failed.
pub async fn scan(disk: Arc<dyn Disk>) -> Result<Vec<(ObjectId, File)>, SpillError> {
    apart(&disk, |disk| {
        let mut found = Vec::new();
        for name in disk.list(DIR)? {
            if name.ends_with(UNFINISHED) {
                disk.remove(&name)?;
                continue;
            }
            let Some(id) = FileId::of_name(&name) else { continue };
            match look(disk, &name, id) {
                Ok(header) => {
                    let (len, crc, job) = (header.len, header.crc, header.job);
                    found.push((id.object, File { number: id.number, len, crc, job }));
                }
                Err(SpillError::Damaged(damage)) => {
                    tracing::warn!(name, %damage, "the file of a spilled object is of no use: it is removed");
                    disk.remove(&name)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    })
    .await
}

fn look(disk: &dyn Disk, name: &str, id: FileId) -> Result<Header, SpillError> {
    let mut file = disk.open(name, false)?;
    let header = Header::decode(&file.read_at(0, HEADER_BYTES)?)?;
    if header.object != id.object {
        return Err(Damage::Name.into());
    }
    if file.len()? != HEADER_BYTES as u64 + header.len {
        return Err(Damage::Length.into());
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::sim_disk::SimDisk;
    use mobula_base::{JobId, TaskId};

    fn object(n: u32) -> ObjectId {
        TaskId::root(JobId(1)).output(n)
    }

    /// An object of two and a half pieces, somewhere in memory.
    fn made() -> (Region, Vec<u8>, File) {
        let bytes: Vec<u8> = (0..CHUNK * 5 / 2).map(|n| (n % 251) as u8).collect();
        let region = Region::heap(4 * CHUNK as u64);
        region.write(64, &bytes);
        let file = File { number: 3, len: bytes.len() as u64, crc: crc32fast::hash(&bytes), job: JobId(1) };
        (region, bytes, file)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn what_is_written_outlives_a_power_cut_and_is_read_back() {
        let (region, bytes, file) = made();
        let disk = SimDisk::new(1);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        block_on(async {
            write(shared.clone(), &region, object(1), file, 64).await.expect("it is taken");
            disk.power_cut();
            assert_eq!(scan(shared.clone()).await.expect("works"), [(object(1), file)]);
            let back = Region::heap(4 * CHUNK as u64);
            read(shared.clone(), &back, object(1), file, 128).await.expect("it is whole");
            assert_eq!(back.view(128, file.len), bytes);
            remove(shared.clone(), file.id(object(1))).await.expect("works");
            remove(shared.clone(), file.id(object(1))).await.expect("gone is gone");
            assert!(scan(shared.clone()).await.expect("works").is_empty());
        });
    }

    #[test]
    fn what_was_not_finished_before_a_power_cut_is_not_there() {
        for seed in 0..20 {
            let (region, _, file) = made();
            let disk = SimDisk::new(seed);
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            block_on(async {
                disk.set_fail_sync(true);
                assert!(matches!(
                    write(shared.clone(), &region, object(1), file, 64).await,
                    Err(SpillError::Disk(_))
                ));
                disk.power_cut();
                disk.set_fail_sync(false);
                assert!(scan(shared.clone()).await.expect("works").is_empty());
                assert!(disk.files().is_empty(), "{:?}", disk.files());
            });
        }
    }

    #[test]
    fn a_full_disk_is_called_so_and_leaves_nothing() {
        let (region, _, file) = made();
        let disk = SimDisk::new(1);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        block_on(async {
            disk.set_full(true);
            assert!(matches!(
                write(shared.clone(), &region, object(1), file, 64).await,
                Err(SpillError::DiskFull)
            ));
            assert!(disk.files().is_empty());
            disk.set_full(false);
            write(shared.clone(), &region, object(1), file, 64).await.expect("it is taken now");
        });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_seen() {
        let (region, _, file) = made();
        let name = file.id(object(1)).name();
        let whole = file.len + HEADER_BYTES as u64;
        for byte in [0, 9, 20, 40, HEADER_BYTES as u64 - 1, HEADER_BYTES as u64, whole / 2, whole - 1] {
            let disk = SimDisk::new(1);
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            block_on(async {
                write(shared.clone(), &region, object(1), file, 64).await.expect("it is taken");
                disk.flip_bit(&name, byte);
                let elsewhere = Region::heap(4 * CHUNK as u64);
                let back = read(shared.clone(), &elsewhere, object(1), file, 64).await;
                assert!(matches!(back, Err(SpillError::Damaged(_))), "byte {byte}: {back:?}");
            });
        }
    }

    #[test]
    fn files_of_another_name_or_length_are_removed_at_the_start() {
        let (region, _, file) = made();
        let disk = SimDisk::new(1);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        block_on(async {
            write(shared.clone(), &region, object(1), file, 64).await.expect("it is taken");
            let name = file.id(object(1)).name();
            let bytes = disk.read(&name).expect("there");
            let other = FileId { object: object(2), number: 4 };
            for (name, bytes) in [
                (other.name(), &bytes[..]),
                (FileId { number: 5, ..file.id(object(1)) }.name(), &bytes[..bytes.len() - 1]),
                (FileId { number: 6, ..other }.name(), &b"short"[..]),
                ("notes.txt".to_owned(), &b"not ours"[..]),
            ] {
                disk.open(&name, true).expect("memory").write_at(0, bytes).expect("memory");
            }
            assert_eq!(scan(shared.clone()).await.expect("works"), [(object(1), file)]);
            let mut left: Vec<String> = disk.files().into_iter().map(|(name, _)| name).collect();
            left.sort();
            assert_eq!(left, [name, "notes.txt".to_owned()]);
        });
    }
}
