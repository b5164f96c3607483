//! A replica whose disk has forgotten or changed what was durable must not vote, acknowledge or
//! serve with it: it is condemned, its files are moved aside, and it has to rejoin as a new member.
//!
//! The mark of it is a file of its own, written first, so that no crash in between can make the
//! directory look fresh: a fresh head might found a second cluster. Where repair is on, the mark gives
//! way to a number to join with, which has the same effect.

use crate::error::Error;
use crate::identity::{self, JOINER};
use crate::{cold, log, snapshot};
use mobula_base::disk::{Disk, write_atomically};
use std::io;

/// Says that this directory's replica must rejoin, and why.
pub const MARK: &str = "rejoin";
/// What was moved aside.
const ASIDE: &str = "damaged-";
/// Damaged copies that are kept.
const KEPT: usize = 2;
/// Who a replica was, and what it once joined with: never again. These go first.
const NAMES: [&str; 2] = ["identity", JOINER];
/// What a replica consists of.
const DIRS: [&str; 3] = [log::segments::DIR, snapshot::DIR, cold::DIR];

/// Marks the replica: from now on no start will use it.
///
/// # Errors
/// The disk failed.
pub fn condemn(disk: &dyn Disk, why: &Error) -> io::Result<()> {
    write_atomically(disk, "", MARK, format!("{why}\n").as_bytes())
}

/// Moves the files of a condemned replica aside; what that says, if it was condemned.
///
/// # Errors
/// [`Error::MustRejoin`] if it was; or the disk failed.
pub fn refuse_condemned(disk: &dyn Disk) -> Result<(), Error> {
    let why = match disk.read(MARK) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| Error::storage(MARK, error))?,
    };
    let why = String::from_utf8_lossy(&why).trim().to_owned();
    let aside = move_aside(disk, &why).map_err(|error| Error::storage(ASIDE, error))?;
    tracing::error!(why, aside, "this replica was damaged: its files are moved aside");
    Err(Error::MustRejoin { why, aside })
}

/// Makes of a condemned directory one that can do nothing but join, by moving everything aside.
///
/// # Errors
/// The disk failed.
pub fn begin_again(disk: &dyn Disk, offer: u64) -> Result<(), Error> {
    let Err(refused) = refuse_condemned(disk) else { return Ok(()) };
    if !matches!(refused, Error::MustRejoin { .. }) {
        return Err(refused);
    }
    identity::joiner_nonce(disk, offer)?;
    let unmarked = disk.remove(MARK).and_then(|()| disk.sync_dir(""));
    unmarked.map_err(|error| Error::storage(MARK, error))
}

/// The numbers of the damaged copies, ascending.
fn copies(disk: &dyn Disk) -> io::Result<Vec<u64>> {
    let mut copies: Vec<u64> =
        disk.list("")?.iter().filter_map(|name| name.strip_prefix(ASIDE)?.parse().ok()).collect();
    copies.sort_unstable();
    Ok(copies)
}

/// Where the files are now.
fn move_aside(disk: &dyn Disk, why: &str) -> io::Result<String> {
    let copies = copies(disk)?;
    let mut left = Vec::new();
    for dir in DIRS {
        left.extend(disk.list(dir)?.into_iter().map(|name| (dir, name)));
    }
    let mut names = disk.list("")?;
    names.retain(|name| NAMES.contains(&name.as_str()));
    if left.is_empty()
        && names.is_empty()
        && let Some(newest) = copies.last()
    {
        return Ok(format!("{ASIDE}{newest}"));
    }
    let aside = format!("{ASIDE}{}", copies.last().map_or(1, |newest| newest + 1));
    for dir in DIRS {
        disk.create_dir(&format!("{aside}/{dir}"))?;
    }
    write_atomically(disk, &aside, "note.txt", format!("{why}\n").as_bytes())?;
    for name in &names {
        disk.rename(name, &format!("{aside}/{name}"))?;
    }
    for (dir, name) in &left {
        disk.rename(&format!("{dir}/{name}"), &format!("{aside}/{dir}/{name}"))?;
    }
    for dir in DIRS {
        disk.sync_dir(&format!("{aside}/{dir}"))?;
    }
    disk.sync_dir(&aside)?;
    disk.sync_dir("")?;
    let gone = (copies.len() + 1).saturating_sub(KEPT);
    for old in &copies[..gone] {
        empty(disk, &format!("{ASIDE}{old}"))?;
    }
    Ok(aside)
}

/// Gives back the room of an old copy; its note stays.
fn empty(disk: &dyn Disk, aside: &str) -> io::Result<()> {
    for dir in DIRS {
        for name in disk.list(&format!("{aside}/{dir}"))? {
            disk.remove(&format!("{aside}/{dir}/{name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use mobula_base::sim_disk::SimDisk;

    fn write(disk: &SimDisk, path: &str) {
        disk.open(path, true).expect("memory").write_at(0, b"x").expect("memory");
    }

    #[test]
    fn a_condemned_replica_is_moved_aside_and_stays_refused() {
        let disk = SimDisk::new(1);
        refuse_condemned(&disk).expect("nothing is wrong with a fresh directory");
        let found =
            Error::Corrupt { file: "log/0000000001.seg".into(), offset: 99, detail: "checksum".into() };
        for life in 1..=4 {
            disk.create_dir("log").expect("memory");
            write(&disk, "log/0000000001.seg");
            write(&disk, "identity");
            condemn(&disk, &found).expect("memory");
            for _ in 0..2 {
                let error = refuse_condemned(&disk).expect_err("condemned").to_string();
                assert!(error.contains(&format!("damaged-{life}")) && error.contains("offset 99"), "{error}");
            }
            assert!(disk.list("log").expect("memory").is_empty());
            assert_eq!(disk.read(&format!("damaged-{life}/log/0000000001.seg")).expect("kept"), b"x");
            assert!(Identity::load(&disk).expect("moved").is_none());
        }
        let kept = |life| !disk.list(&format!("damaged-{life}/log")).expect("memory").is_empty();
        assert_eq!([1, 2, 3, 4].map(kept), [false, false, true, true]);
    }
}
