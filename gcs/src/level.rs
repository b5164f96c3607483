//! The level of formats: one number for all that a cluster writes on disks and sends between heads.
//!
//! Every program reads a range of levels. A cluster writes at one level, kept in the log of shard 0;
//! its leader raises it by an entry once every head has announced that it reads the next. So heads of
//! two releases run mixed, one after the other is replaced, and nothing is written that one of them
//! could not read. A program that comes too late is told so: before it takes part, where possible.
//!
//! | level | identity | log | snapshot | dump | backup | between heads |
//! |-------|----------|-----|----------|------|--------|---------------|
//! | 1     | 1        | 2   | 2        | 3    | 1      | 1             |
//! | 2     | 1        | 2   | 2        | 4    | 1      | 2             |
//! | 3     | 1        | 2   | 2        | 5    | 1      | 3             |
//! | 4     | 1        | 2   | 2        | 6    | 1      | 4             |
//! | 5     | 1        | 2   | 2        | 7    | 1      | 5             |
//!
//! From level 2 on slots move between shards: commands for that, and who owns what in dumps. From level 3
//! on references are counted: nodes say who holds what, and runs, dumps and slots that move have it. From level 4
//! on there are placement groups: requests and commands of shard 0, and its dumps. No release announces level 5: it adds the writer's name to dumps, so that upgrades can be tested.
//!
//! - A head notes the level in its `identity`, synced, before it writes anything at that level.
//! - A replica that reads less stops at the entry that raises the level, and says what to install.

use crate::error::Error;
use crate::identity::Identity;
use crate::server::{Running, Site};
use futures::future::join_all;
use mobula_base::disk::Disk;
use mobula_proto as proto;
use prost::Message;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The oldest level this program reads.
const OLDEST: u32 = 1;
/// The newest level this program reads.
pub const NEWEST: u32 = 4;
/// From this level on slots may move.
pub const MOVES_SLOTS: u32 = 2;
/// From this level on references are counted.
pub const COUNTS_REFERENCES: u32 = proto::LEVEL_REFERENCES;
/// From this level on there are placement groups.
pub const PLACES_GROUPS: u32 = proto::LEVEL_GROUPS;
/// Dumps of this level on name the program that wrote them.
pub const NAMES_WRITER: u32 = 5;
/// Pause between looks whether the level can be raised, or has been.
const TICK: Duration = Duration::from_millis(500);

/// What a program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formats {
    /// The oldest level.
    pub oldest: u32,
    /// The newest level.
    pub newest: u32,
    /// Its version, for people.
    pub program: String,
}

impl Default for Formats {
    fn default() -> Self {
        Formats { oldest: OLDEST, newest: NEWEST, program: env!("CARGO_PKG_VERSION").into() }
    }
}

impl Formats {
    /// Whether this program may work on what is at `level`, since `program`; levels begin at 1.
    ///
    /// # Errors
    /// It is too old, or too new.
    pub fn check(&self, level: u32, program: &str) -> Result<(), Error> {
        let (level, program) = (level.max(1), program.to_owned());
        if level > self.newest {
            return Err(Error::TooOld { writes: level, reads: self.newest, program });
        }
        if level < self.oldest {
            return Err(Error::TooNew { writes: level, reads: self.oldest });
        }
        Ok(())
    }
}

/// What this head may write: never less than before.
pub struct Level {
    /// What it reads.
    pub formats: Formats,
    disk: Arc<dyn Disk>,
    noted: Mutex<Identity>,
    writes: AtomicU32,
}

impl Level {
    /// At first a head writes what its identity says that it has written.
    pub fn new(formats: Formats, disk: Arc<dyn Disk>, identity: Identity) -> Self {
        let writes = AtomicU32::new(identity.level.max(1));
        Level { formats, disk, noted: Mutex::new(identity), writes }
    }

    /// The level to write at.
    pub fn writes(&self) -> u32 {
        self.writes.load(Ordering::Acquire)
    }

    /// The cluster has reached a level; that is durable when this returns, and only then counts. What
    /// is not known of the program (`""`) may be noted later.
    ///
    /// # Errors
    /// This program does not read it, or the disk failed.
    pub fn reach(&self, level: u32, program: &str) -> Result<(), Error> {
        self.formats.check(level, program)?;
        let mut noted = self.noted.lock().expect("nothing panics under this lock");
        let higher = level.max(1) > noted.level.max(1);
        if higher || (level == noted.level && !program.is_empty() && program != noted.program) {
            let identity = Identity { level, program: program.to_owned(), ..noted.clone() };
            identity.save(&*self.disk)?;
            tracing::info!(level, program, "this cluster writes a new level of formats");
            *noted = identity;
            self.writes.store(level.max(1), Ordering::Release);
        }
        Ok(())
    }
}

/// The level that all can read, if it is above the one now. `None` among the answers: not heard.
pub fn next(now: u32, announced: &[Option<(u32, u32)>]) -> Option<u32> {
    let heard: Option<Vec<(u32, u32)>> = announced.iter().copied().collect();
    let heard = heard.filter(|heard| !heard.is_empty())?;
    // Programs before this announce nothing, and read the first level.
    let newest = heard.iter().map(|(_, newest)| (*newest).max(1)).min()?;
    let oldest = heard.iter().map(|(oldest, _)| *oldest).max()?;
    (newest > now.max(1) && oldest <= newest).then_some(newest)
}

/// Notes the level that the cluster has reached; on the leader of shard 0 also raises it. Never ends.
pub async fn keep(site: Arc<Site>, running: Arc<Running>) {
    loop {
        tokio::time::sleep(TICK).await;
        let (level, program) = running.root().replica.with(|state| state.cluster.level());
        if let Err(error) = running.level.reach(level, &program) {
            tracing::error!(%error, "the level of formats cannot be noted");
        }
        if running.root().leadership().here {
            raise(&site, &running).await;
        }
    }
}

/// Asks every head what it reads, and proposes the level that all can.
pub async fn raise(site: &Site, running: &Running) {
    let level = running.root().replica.with(|state| state.cluster.level().0);
    let formats = &running.level.formats;
    let table = crate::membership::driver::local_table(running);
    if level >= formats.newest || table.plan.is_some() {
        return;
    }
    let me = running.identity.head;
    let mut others: BTreeSet<String> = table.members.iter().map(|entry| entry.address.clone()).collect();
    others.extend(running.groups.iter().flat_map(|group| group.member_view().seen.nodes.into_values()));
    let own = running.root().heads().into_iter().find(|head| head.head == me).map(|head| head.address);
    others.remove(own.as_deref().unwrap_or(&site.advertise));
    let asked = others.iter().map(|address| crate::bootstrap::probe(site.net.clone(), address));
    let mut announced: Vec<_> = join_all(asked)
        .await
        .into_iter()
        .map(|reply| reply.map(|reply| (reply.oldest, reply.newest)))
        .collect();
    announced.push(Some((formats.oldest, formats.newest)));
    let Some(level) = next(level, &announced) else { return };
    // It counts only if nobody has come or gone since they were asked.
    let (heads, program) = (table.version, formats.program.clone());
    let op = proto::command::Op::Raise(proto::RaiseLevel { level, program, heads });
    let command = proto::Command::from(op).encode_to_vec();
    // Whatever the outcome: the next look decides anew.
    running.root().propose(command.into()).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_is_raised_to_what_all_read_once_all_are_heard() {
        assert_eq!(next(1, &[Some((1, 2)), Some((1, 2)), Some((1, 3))]), Some(2));
        assert_eq!(next(0, &[Some((1, 2)), Some((1, 2))]), Some(2));
        assert_eq!(next(1, &[Some((1, 2)), None]), None, "one was not heard");
        assert_eq!(next(1, &[Some((1, 2)), Some((1, 1))]), None);
        assert_eq!(next(1, &[Some((1, 2)), Some((0, 0))]), None, "one announces nothing");
        assert_eq!(next(2, &[Some((1, 2))]), None, "it is there");
        assert_eq!(next(1, &[Some((3, 3)), Some((1, 2))]), None, "no level suits both");
        assert_eq!(next(1, &[]), None);
    }

    #[test]
    fn a_program_out_of_range_is_told_what_to_install() {
        let formats = Formats { oldest: 2, newest: 3, program: "2".into() };
        formats.check(2, "1").expect("within");
        formats.check(3, "2").expect("within");
        let error = formats.check(4, "7.1").expect_err("too old").to_string();
        assert!(error.contains("writes format 4") && error.contains("reads up to 3"), "{error}");
        assert!(error.contains("install version 7.1"), "{error}");
        let error = formats.check(0, "").expect_err("too new").to_string();
        assert!(error.contains("format 1") && error.contains("from 2 on"), "{error}");
    }
}
