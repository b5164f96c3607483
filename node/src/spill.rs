//! Files of objects that left memory: written durably before the memory is used again, read back and
//! checked, found again after a restart.
//!
//! Bytes go piece by piece between the region and the thread that may block, so that nothing touches the
//! region after the life that it belongs to. What shrinks is packed piece by piece, on that thread, too
//! (`mobula_objstore::packing` decides and packs).

use mobula_base::ObjectId;
use mobula_base::disk::{Disk, DiskFile};
use mobula_objstore::Region;
use mobula_objstore::depot::File;
use mobula_objstore::packing::{self, PIECE, PREFIX};
use mobula_objstore::spill_file::{Damage, FileId, HEADER_BYTES_MAX, Header};
use std::io;
use std::sync::Arc;

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

/// Writes an object that lies at `offset` to its file, and says to how many bytes it was packed, if it was. Once
/// this is `Ok` the file outlives a power cut.
///
/// # Errors
/// The disk did not take it; nothing is left of the file then, or will be with the next start.
pub async fn write(
    disk: Arc<dyn Disk>,
    region: &Region,
    object: ObjectId,
    file: File,
    offset: u64,
) -> Result<Option<u64>, SpillError> {
    let name = file.id(object).name();
    let result = write_all(&disk, region, &name, file.header(object), offset).await;
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
    header: Header,
    offset: u64,
) -> Result<Option<u64>, SpillError> {
    let samples = packing::samples(header.len).into_iter();
    let samples = samples.map(|(from, to)| region.view(offset + from, to - from).to_vec()).collect();
    let name = name.to_owned();
    let mut file = apart(disk, move |disk| Unfinished::open(disk, name, header, samples)).await?;
    let mut at = 0;
    while at < header.len {
        let len = (PIECE as u64).min(header.len - at);
        // Copied here, where nothing else runs: the life that has the region may end before the write does.
        let bytes = region.view(offset + at, len).to_vec();
        file = apart(disk, move |_| file.take(&bytes)).await?;
        at += len;
    }
    apart(disk, move |disk| file.finish(disk)).await
}

/// A file that is being written, under another name.
struct Unfinished {
    out: Box<dyn DiskFile>,
    /// What it will be called.
    name: String,
    /// What it will say; how many bytes are packed is not known before the end, so it is written last.
    header: Header,
    crc: crc32fast::Hasher,
    /// Where the next bytes go.
    end: u64,
}

impl Unfinished {
    fn unfinished(name: &str) -> String {
        format!("{name}{UNFINISHED}")
    }

    fn open(
        disk: &dyn Disk,
        name: String,
        header: Header,
        samples: Vec<Vec<u8>>,
    ) -> Result<Self, SpillError> {
        let mut out = disk.open(&Self::unfinished(&name), true)?;
        out.set_len(0)?;
        let header = Header { packed: packing::pays(&samples).then_some(0), ..header };
        let end = header.bytes() as u64;
        Ok(Unfinished { out, name, header, crc: crc32fast::Hasher::new(), end })
    }

    /// The next piece of the object.
    fn take(mut self, piece: &[u8]) -> Result<Self, SpillError> {
        self.crc.update(piece);
        let packed = self.header.packed.is_some().then(|| packing::pack(piece));
        let bytes = packed.as_deref().unwrap_or(piece);
        self.out.write_at(self.end, bytes)?;
        self.end += bytes.len() as u64;
        Ok(self)
    }

    fn finish(mut self, disk: &dyn Disk) -> Result<Option<u64>, SpillError> {
        if self.crc.finalize() != self.header.crc {
            // What was sealed is not what lies there: whatever did that must not become durable.
            return Err(Damage::Bytes.into());
        }
        let stored = self.end - self.header.bytes() as u64;
        let header = Header { packed: self.header.packed.map(|_| stored), ..self.header };
        self.out.write_at(0, &header.encode())?;
        self.out.sync()?;
        // Its pages are of no use to the cache: the object is in memory or not needed.
        self.out.forget(0, self.end);
        disk.rename(&Self::unfinished(&self.name), &self.name)?;
        disk.sync_dir(DIR)?;
        Ok(header.packed)
    }
}

/// Opens the file of an object and checks what it says about itself.
async fn open(disk: &Arc<dyn Disk>, object: ObjectId, file: File) -> Result<Box<dyn DiskFile>, SpillError> {
    let (name, header) = (file.id(object).name(), file.header(object));
    apart(disk, move |disk| {
        let mut from = disk.open(&name, false)?;
        let found = Header::decode(&from.read_at(0, HEADER_BYTES_MAX)?)?;
        if found != header {
            return Err(Damage::Name.into());
        }
        if from.len()? != header.file_len() {
            return Err(Damage::Length.into());
        }
        Ok(from)
    })
    .await
}

/// Bytes of an object from its file, one piece after the other, checked at the end.
pub struct Pieces {
    disk: Arc<dyn Disk>,
    reading: Option<Reading>,
    len: u64,
    at: u64,
}

/// How far a file has been read.
struct Reading {
    from: Box<dyn DiskFile>,
    header: Header,
    crc: crc32fast::Hasher,
    /// Where the next bytes stand.
    next: u64,
}

impl Reading {
    /// The next `len` bytes of the object.
    fn piece(&mut self, len: usize) -> Result<Vec<u8>, SpillError> {
        let bytes = if self.header.packed.is_some() {
            let prefix = self.bytes(PREFIX)?;
            let packed = self.bytes(packing::packed_len(&prefix, len)?)?;
            packing::unpack(packed, len)?
        } else {
            self.bytes(len)?
        };
        self.crc.update(&bytes);
        Ok(bytes)
    }

    fn bytes(&mut self, len: usize) -> Result<Vec<u8>, SpillError> {
        let bytes = self.from.read_at(self.next, len)?;
        if bytes.len() != len {
            return Err(Damage::Length.into());
        }
        self.next += len as u64;
        Ok(bytes)
    }

    /// Whether what was read is all there is, and what was written.
    fn end(self) -> Result<(), SpillError> {
        if self.next != self.header.file_len() {
            return Err(Damage::Length.into());
        }
        if self.crc.finalize() != self.header.crc { Err(Damage::Bytes.into()) } else { Ok(()) }
    }
}

impl Pieces {
    /// Starts to read an object.
    ///
    /// # Errors
    /// There is no such file, or not as it was written.
    pub async fn open(disk: Arc<dyn Disk>, object: ObjectId, file: File) -> Result<Self, SpillError> {
        let (from, header) = (open(&disk, object, file).await?, file.header(object));
        let next = header.bytes() as u64;
        let reading = Some(Reading { from, header, crc: crc32fast::Hasher::new(), next });
        Ok(Pieces { disk, reading, len: file.len, at: 0 })
    }

    /// The next piece; `None` when all were read and are what was written.
    ///
    /// # Errors
    /// The disk failed, or the bytes are not what was written.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, SpillError> {
        let len = (PIECE as u64).min(self.len - self.at) as usize;
        let mut reading = self.reading.take().ok_or(SpillError::Stopping)?;
        if len == 0 {
            return reading.end().map(|()| None);
        }
        let (reading, bytes) = apart(&self.disk, move |_| {
            let bytes = reading.piece(len)?;
            Ok((reading, bytes))
        })
        .await?;
        self.reading = Some(reading);
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
                    let Header { len, crc, job, packed, .. } = header;
                    found.push((id.object, File { number: id.number, len, crc, job, packed }));
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
    let header = Header::decode(&file.read_at(0, HEADER_BYTES_MAX)?)?;
    if header.object != id.object {
        return Err(Damage::Name.into());
    }
    if file.len()? != header.file_len() {
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

    /// Bytes of two and a half pieces that shrink, and some that do not.
    fn contents() -> [Vec<u8>; 3] {
        let len = PIECE * 5 / 2;
        let mut dice = mobula_base::random::Random::new(1);
        let noise: Vec<u8> = (0..len).map(|_| dice.next_u64() as u8).collect();
        let text: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        // One whose first piece shrinks and whose last does not.
        let half = [&text[..len * 2 / 3], &noise[..len - len * 2 / 3]].concat();
        [text, noise, half]
    }

    /// An object with these bytes, somewhere in memory.
    fn laid(bytes: &[u8]) -> (Region, File) {
        let region = Region::heap(4 * PIECE as u64);
        region.write(64, bytes);
        let (len, crc) = (bytes.len() as u64, crc32fast::hash(bytes));
        (region, File { number: 3, len, crc, job: JobId(1), packed: None })
    }

    fn made() -> (Region, Vec<u8>, File) {
        let [bytes, ..] = contents();
        let (region, file) = laid(&bytes);
        (region, bytes, file)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work)
    }

    #[test]
    fn what_is_written_outlives_a_power_cut_and_is_read_back() {
        for (bytes, shrinks_to) in contents().iter().zip([5, 100, 80]) {
            let (region, file) = laid(bytes);
            let disk = SimDisk::new(1);
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            block_on(async {
                let written = write(shared.clone(), &region, object(1), file, 64).await;
                let packed = written.expect("it is taken");
                assert_eq!(packed.is_some(), shrinks_to < 100);
                let file = File { packed, ..file };
                let whole = disk.read(&file.id(object(1)).name()).expect("there").len() as u64;
                assert_eq!(whole, file.header(object(1)).file_len());
                assert!(whole * 100 <= file.len * shrinks_to + 10_000, "{whole} of {}", file.len);
                disk.power_cut();
                assert_eq!(scan(shared.clone()).await.expect("works"), [(object(1), file)]);
                let back = Region::heap(4 * PIECE as u64);
                read(shared.clone(), &back, object(1), file, 128).await.expect("it is whole");
                assert_eq!(back.view(128, file.len), *bytes);
                remove(shared.clone(), file.id(object(1))).await.expect("works");
                remove(shared.clone(), file.id(object(1))).await.expect("gone is gone");
                assert!(scan(shared.clone()).await.expect("works").is_empty());
            });
        }
    }

    /// As a build wrote it that packed nothing, byte by byte.
    #[test]
    fn a_file_from_before_packing_is_read() {
        let (_, bytes, file) = made();
        let mut old = b"MOBSPILL".to_vec();
        old.extend(1_u32.to_le_bytes());
        old.extend(0_u32.to_le_bytes());
        old.extend(1_u64.to_le_bytes());
        old.extend(file.len.to_le_bytes());
        old.extend(file.crc.to_le_bytes());
        old.extend(object(1).to_bytes());
        old.extend([0; 2]);
        old.extend(crc32fast::hash(&old).to_le_bytes());
        old.extend(&bytes);
        let disk = SimDisk::new(1);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        disk.open(&file.id(object(1)).name(), true).expect("memory").write_at(0, &old).expect("memory");
        block_on(async {
            assert_eq!(scan(shared.clone()).await.expect("works"), [(object(1), file)]);
            let back = Region::heap(4 * PIECE as u64);
            read(shared.clone(), &back, object(1), file, 0).await.expect("it is whole");
            assert_eq!(back.view(0, file.len), bytes);
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
        for bytes in contents() {
            let (region, file) = laid(&bytes);
            let name = file.id(object(1)).name();
            let disk = SimDisk::new(1);
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            block_on(async {
                let written = write(shared.clone(), &region, object(1), file, 64).await;
                let file = File { packed: written.expect("it is taken"), ..file };
                let header = file.header(object(1));
                let (head, whole) = (header.bytes() as u64, header.file_len());
                // In the header, a packed length, the first bytes after it, somewhere, and at the end.
                for byte in [0, 9, 20, 40, head - 1, head, head + 2, head + 4, head + 9, whole / 2, whole - 1]
                {
                    disk.flip_bit(&name, byte);
                    let elsewhere = Region::heap(4 * PIECE as u64);
                    let back = read(shared.clone(), &elsewhere, object(1), file, 64).await;
                    assert!(matches!(back, Err(SpillError::Damaged(_))), "byte {byte}: {back:?}");
                    disk.flip_bit(&name, byte);
                }
                read(shared.clone(), &region, object(1), file, 64).await.expect("all of it is mended");
            });
        }
    }

    /// A packed file whose header is right, but with more or fewer bytes than its pieces take.
    #[test]
    fn pieces_that_do_not_fill_their_file_are_damage() {
        let (region, _, file) = made();
        for more in [-1_i64, 1] {
            let disk = SimDisk::new(1);
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            block_on(async {
                let written = write(shared.clone(), &region, object(1), file, 64).await;
                let packed = written.expect("it is taken").expect("it shrinks");
                let file = File { packed: Some(packed.saturating_add_signed(more)), ..file };
                let header = file.header(object(1));
                let mut out = disk.open(&file.id(object(1)).name(), false).expect("there");
                out.write_at(0, &header.encode()).expect("memory");
                out.set_len(header.file_len()).expect("memory");
                let back = read(shared.clone(), &region, object(1), file, 64).await;
                assert!(matches!(back, Err(SpillError::Damaged(Damage::Length))), "{back:?}");
            });
        }
    }

    #[test]
    fn files_of_another_name_or_length_are_removed_at_the_start() {
        let (region, _, file) = made();
        let disk = SimDisk::new(1);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        block_on(async {
            let packed = write(shared.clone(), &region, object(1), file, 64).await.expect("it is taken");
            let file = File { packed, ..file };
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
