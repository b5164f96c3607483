//! What can go wrong, said to a person: what, because of what, and what to do about it.

use std::io;

/// An error of a head or of a client of the control store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk refused; the replica has stopped and nothing acknowledged is lost.
    #[error(
        "storage of this head failed at {what}: {source}; free space or replace the disk, then restart the head"
    )]
    Storage {
        /// The file or action.
        what: String,
        /// What the disk said.
        source: io::Error,
    },
    /// Bytes that were once durable have changed.
    #[error(
        "{file} is damaged at offset {offset} ({detail}): restore this replica from its peers: \
         empty its data directory and re-add it"
    )]
    Corrupt {
        /// Relative path of the file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// Which check failed.
        detail: String,
    },
    /// The directory is an older copy of itself: it lacks what it had acknowledged.
    #[error(
        "the data directory went back in time: shard {shard} is at term {}, entry {}, and {by} was told of term {}, \
         entry {}. A copy that was restored cannot vote: this replica must rejoin",
        .here.0, .here.1, .told.0, .told.1
    )]
    WentBack {
        /// The shard.
        shard: u32,
        /// Who remembers.
        by: String,
        /// Term and index that were acknowledged.
        told: (u64, u64),
        /// Term and index that are there.
        here: (u64, u64),
    },
    /// This replica was damaged; its files are moved aside.
    #[error(
        "this replica must rejoin as a new member: {why}. Its files are in {aside}; while the other heads form a \
         majority, start it without --no-repair, or replace it (`mobula head replace`), then remove the file \
         `rejoin` from its data directory"
    )]
    MustRejoin {
        /// What was found.
        why: String,
        /// The directory they were moved to.
        aside: String,
    },
    /// A backup that is not what was written.
    #[error("{file} is damaged at offset {offset} ({detail}): use another backup")]
    Archive {
        /// The file.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// Which check failed.
        detail: String,
    },
    /// Another process holds the data directory.
    #[error("data directory in use by another head: stop it, or give this head a directory of its own")]
    InUse,
    /// The directory was written by a later format.
    #[error(
        "data directory written by a newer Mobula (format {found}, this build reads up to {known}): upgrade this head"
    )]
    Newer {
        /// Format in the directory.
        found: u32,
        /// Newest format this build knows.
        known: u32,
    },
    /// The cluster has gone on to formats that this program does not know.
    #[error(
        "this cluster writes format {writes}, this program reads up to {reads}: install version {}",
        if .program.is_empty() { "of the other heads" } else { .program }
    )]
    TooOld {
        /// Level of the cluster.
        writes: u32,
        /// Newest level this program reads.
        reads: u32,
        /// The version that began to write it.
        program: String,
    },
    /// The cluster still writes what this program does not read any more.
    #[error(
        "this cluster writes format {writes}, this program reads from {reads} on: upgrade all heads to a version \
         in between first"
    )]
    TooNew {
        /// Level of the cluster.
        writes: u32,
        /// Oldest level this program reads.
        reads: u32,
    },
    /// A setting that cannot work.
    #[error("bad configuration: {0}")]
    Config(String),
    /// Two or four heads: more machines, no more safety.
    #[error("{0} heads: an even number of heads tolerates no more failures than one fewer; use {next}", next = .0 + 1)]
    EvenHeads(usize),
    /// Slots move, and the end of that was not waited for. Nothing of the request was done.
    #[error(
        "slots are being moved between shards, and nothing was done: {0}; ask again later, `mobula shard list` shows how far it is"
    )]
    Moving(String),
    /// Heads disagree on the number of shards.
    #[error(
        "head {peer} is configured with {theirs} shards, this one with {ours}: give every head the same number"
    )]
    ShardMismatch {
        /// Address of the other head.
        peer: String,
        /// Its number; or the number stored on disk.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Heads disagree on who they are.
    #[error(
        "head {peer} was given the join list {theirs:?}, this one {ours:?}: give every head the same list"
    )]
    JoinMismatch {
        /// Address of the other head.
        peer: String,
        /// Its list.
        theirs: Vec<String>,
        /// Ours.
        ours: Vec<String>,
    },
    /// This head forgot its votes; letting it in could elect two leaders.
    #[error(
        "an emptied data directory at a member's address is refused: {address} is a member of the running \
         cluster {cluster:016x}; start it without --no-repair, restore the directory, or run `mobula head replace {head} {address}`, which \
         gives it a new id, and start this head again"
    )]
    Emptied {
        /// Our address.
        address: String,
        /// The running cluster.
        cluster: u64,
        /// The member's id.
        head: u64,
    },
    /// The cluster goes on without this head.
    #[error(
        "head {head} was removed from cluster {cluster:016x}: its data directory is of no more use; to add this \
         machine again, empty the directory, run `mobula head add` and start it with --join"
    )]
    Removed {
        /// Its id, which is not given again.
        head: u64,
        /// The cluster.
        cluster: u64,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; is another process using it?")]
    Listen {
        /// The address.
        address: String,
        /// What the network said.
        source: io::Error,
    },
    /// The consensus library stopped.
    #[error("shard {shard} stopped: {detail}; restart this head")]
    Stopped {
        /// The shard.
        shard: u32,
        /// Why.
        detail: String,
    },
    /// No head answered within the deadline.
    #[error(
        "none of the heads {heads:?} answered in time (last: {last}): check that they run and can be reached"
    )]
    Unreachable {
        /// All that were tried.
        heads: Vec<String>,
        /// The last error.
        last: String,
    },
    /// The cluster does not know the caller.
    #[error("{address}: {}{}", mobula_net::auth::NEEDED, if *.shown { " (the one that was given is not its token)" } else { "" })]
    NeedsToken {
        /// The head that said so.
        address: String,
        /// Whether a token was shown.
        shown: bool,
    },
    /// The request may or may not have taken effect.
    #[error("the outcome of the request is unknown ({0}): repeating it is safe, its id makes it happen once")]
    OutcomeUnknown(String),
    /// The request can never succeed.
    #[error("refused by the control store: {0}")]
    Refused(String),
    /// The answer made no sense.
    #[error("a head sent an answer this build does not understand ({0}): run one build everywhere")]
    Protocol(&'static str),
}

impl Error {
    pub(crate) fn storage(what: impl Into<String>, source: io::Error) -> Self {
        match source.downcast::<Error>() {
            Ok(own) => own,
            Err(source) => Error::Storage { what: what.into(), source },
        }
    }

    /// Whether this replica must not take part with what is on its disk.
    pub(crate) fn condemns(&self) -> bool {
        matches!(self, Error::Corrupt { .. } | Error::WentBack { .. })
    }

    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}
