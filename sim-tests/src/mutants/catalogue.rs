//! Every bug that can be planted, in one place. `M..` are those of the fault catalogue that the project
//! began with, as they apply here; `P..` are about placement groups; `R..` break the rule of the design with that number; the others are
//! bugs that this code once had or nearly had.
//!
//! A bug is the smallest wrong edit at one place, without a panic or a mark: only its consequences can be
//! seen. Most are in the product, where `mobula_base::mutant!` has their name; those of `store` are planted
//! by its hook or by a disk that lies (`store/planted.rs`).

/// What a simulation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// The pure cores in an event loop.
    Core,
    /// Whole daemons with a job.
    Full,
    /// The control store alone.
    Store,
    /// Placement groups.
    Groups,
}

impl Layer {
    /// All of them.
    pub const ALL: [Layer; 4] = [Layer::Core, Layer::Full, Layer::Store, Layer::Groups];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Core => "core",
            Layer::Full => "full",
            Layer::Store => "store",
            Layer::Groups => "groups",
        }
    }
}

/// Where a bug is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the site in the product that has its name.
    Product,
    /// Planted by the simulator of the store under this name.
    Planted(&'static str),
}

/// One bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Its name.
    pub id: &'static str,
    /// The rule or promise that it breaks.
    pub breaks: &'static str,
    /// What is wrong.
    pub what: &'static str,
    /// Where it is.
    pub place: Place,
    /// Who should find it.
    pub layers: &'static [Layer],
}

const fn product(
    id: &'static str,
    breaks: &'static str,
    what: &'static str,
    layers: &'static [Layer],
) -> Mutant {
    Mutant { id, breaks, what, place: Place::Product, layers }
}

const fn planted(id: &'static str, name: &'static str, breaks: &'static str, what: &'static str) -> Mutant {
    Mutant { id, breaks, what, place: Place::Planted(name), layers: STORE }
}

const CORE: &[Layer] = &[Layer::Core];
const BOTH: &[Layer] = &[Layer::Core, Layer::Full];
const FULL: &[Layer] = &[Layer::Full];
const STORE: &[Layer] = &[Layer::Store];
const GROUPS: &[Layer] = &[Layer::Groups];

/// All of them, in the order of their names.
pub const MUTANTS: &[Mutant] = &[
    product("G8", "G8", "the records of a job that has ended stay in memory", CORE),
    planted("M01", "skip-vote", "R15", "a vote is answered, and not written"),
    planted("M02", "ack-before-sync", "R14", "an append is acknowledged before it is synced"),
    product("M04", "R7", "after a broken connection a peer's messages are taken again", FULL),
    product("M05", "R2", "a known submission is recognised only once it has finished", BOTH),
    product("M06", "R7", "snapshots and cold runs forget which attempt was granted", BOTH),
    product("M08", "R10", "a done-record by a fenced executor is applied", BOTH),
    product(
        "M10",
        "R8",
        "a record goes when nobody holds its values, although others name or contain them",
        CORE,
    ),
    product("M11", "R14", "files of cold runs are not synced before a snapshot names them", STORE),
    planted("M13", "read-without-index", "linear", "a fresh read is served without asking a majority"),
    product("M14", "scheduler 1", "a worker that dies with work gives its CPU back twice", BOTH),
    planted("M16", "watch-twice", "watch", "an answer to a watch begins with the change before"),
    product("M17", "liveness", "votes and snapshots have no deadline", STORE),
    product(
        "M18",
        "R15",
        "no pre-vote: a head that does not hear its leader deposes it, again and again",
        STORE,
    ),
    planted("M22", "ignore-failed-sync", "R14", "a failed sync is taken for done"),
    product("M23", "R14", "the checksum of a cold run is not looked at", STORE),
    product("M25", "R14", "a truncation of the log leaves its first void entry in the file", STORE),
    product("M27", "determinism", "the order of a hash map chooses the worker", BOTH),
    product("M28", "R14", "an append from before a truncation counts as the place of what came after", STORE),
    product("P1", "groups", "more is assigned on a node than it offers", GROUPS),
    product("P2", "groups", "an attempt is committed by the number of one that is over", GROUPS),
    product("P3", "groups", "a group is committed when some of its nodes have reserved", GROUPS),
    product(
        "P4",
        "groups",
        "what is reserved for a bundle that is not wanted any more is never given back",
        GROUPS,
    ),
    product("P5", "groups", "groups outlive their job", GROUPS),
    product("R1", "R1", "the submissions of a task that runs again are numbered from another start", FULL),
    product("R1b", "R1", "the parent does not enter the id of a task", BOTH),
    product("R2", "R2", "a record with another digest passes for the known one", CORE),
    product("R3", "R3", "a done-record with another checksum passes for the known one", CORE),
    product("R3b", "R3", "the failure of an attempt that does not count passes for another value", CORE),
    product("R4", "R4", "a task is done before what it submitted is committed", BOTH),
    product("R4b", "R4", "whoever submits a known task again does not wait for its record", CORE),
    product("R4c", "R4", "a record is taken back although other nodes know of its value", CORE),
    product("R4d", "R4", "a value leaves its node before what lies inside has its record", CORE),
    product("R4e", "R4", "a task of a job that wants commit begins before its record is", CORE),
    product("R6a", "R6", "a record is sent before its edges in other shards are there", CORE),
    product("R6b", "R6", "edges into other shards never end", CORE),
    product("R6c", "R6", "a put is released before its edges in other shards are there", CORE),
    product("R6d", "R6", "what a task had put when it died keeps its edges for ever", CORE),
    product("R6e", "R6", "a record that comes anew runs before edges of the earlier one have ended", CORE),
    product("R6f", "R6", "a second copy that died with its node is not made again", CORE),
    product("R7a", "R7", "the next attempt starts before it is granted", BOTH),
    product("R7b", "R7", "every proposal of an attempt is granted", BOTH),
    product("R7c", "R7", "attempts that failed are not counted: a poison task never ends", CORE),
    product("R7d", "R7", "a task without retries starts before its record is committed", BOTH),
    product("R7e", "R7", "one retry fewer than the task has", BOTH),
    product("R7f", "R7", "a record that comes anew goes on with the attempt of the one before", CORE),
    product("R7g", "R7", "what ended and is submitted again before its end is recorded runs once more", CORE),
    product("R8a", "R8", "whoever lets go of an object lets go of it for everybody", CORE),
    product("R8b", "R8", "what a reference was taken out of may go before the reference is held", CORE),
    product("R8c", "R8", "what is still to come may go when the first holder lets go of it", CORE),
    product("R8d", "R8", "what a reference was taken out of goes with the worker that took it", CORE),
    product("R8e", "R8", "who submits again what its node took over does not hold it", CORE),
    product("R8f", "R8", "what a running task has put goes although others name it", CORE),
    product("R9a", "R9", "what no node has reported is lost, whoever has not reported yet", BOTH),
    product("R9b", "R9", "lost is said before all nodes have confirmed a death", BOTH),
    product("R9c", "R9", "a copy that was gone and is made again counts as gone", CORE),
    product("R9d", "R9", "a put that its node let go of is lost until that node reports its copy", CORE),
    product("R9e", "R9", "a copy that was gone counts against a record that comes anew", CORE),
    product("R9f", "R9", "what a task that failed had put is not looked for with whoever ran it", CORE),
    product("R9g", "R9", "a report of holdings that was overtaken counts all the same", CORE),
    product("R10a", "R10", "a stream of a fenced node is applied", BOTH),
    product("R10b", "R10", "a death is fenced in shard 0 only", BOTH),
    product("R10c", "R10", "what the dead hold is held for ever", CORE),
    product("R12a", "R12", "a batch that is sent again is applied again", BOTH),
    product("R12b", "R12", "a snapshot forgets which batch of a stream was the last", BOTH),
    product("R12c", "R12", "what follows from a record goes before it in its batch", BOTH),
    product("R12d", "R12", "a put travels in front of the release of an earlier hold of it", CORE),
    product("R12e", "R12", "an edge travels in front of the release of its record's earlier life", CORE),
    product("R13", "R13", "copies that somebody holds may be dropped", CORE),
    product("R16", "R16", "a worker that waits inside its task keeps its CPU", BOTH),
    product("R16b", "R16", "re-executions wait for room behind those who wait for them", BOTH),
    planted("S01", "forget-directory-sync", "R14", "new files and renames are not made durable"),
    planted("S02", "repeat-twice", "R12", "a repeated request executes again"),
    planted("S03", "apply-differently", "digest", "one replica applies another value"),
    planted("S04", "take-any-disk", "no-guess", "a directory is used without asking whose it is"),
    planted("S05", "leak-proposal-slot", "liveness", "a failed proposal keeps its place"),
    product("W1", "R4", "what a dead worker had queued is forgotten with it", BOTH),
    product("W2", "R7", "a worker's late result of an attempt is taken for that of the next", BOTH),
    product("W3", "G5", "a failed transfer with no other holder is the end of asking", BOTH),
    product("W4", "R3", "a done-record that was refused is not sent again", BOTH),
    product("W5", "R9", "a node's full report leaves out the last of its copies", BOTH),
    product(
        "W6",
        "R10",
        "a dead node's finished tasks wait for ever for its word that all is committed",
        BOTH,
    ),
    product("W7", "G5", "whoever was refused an attempt does not ask again where the object is", BOTH),
    product("W8", "R7", "an attempt that an earlier one left in line is given to a second worker", BOTH),
    product("W9", "R4", "a copy of a value passes for the record of its task", CORE),
    product("W10", "G5", "a record that was never sent holds up all that waits behind it", CORE),
    product("W11", "G8", "what a transfer that failed was for is remembered for ever", CORE),
    product("W12", "R4", "what was let go passes for known when it is submitted again", CORE),
    product("W13", "R7", "a run of a pruned record is not reported to whoever keeps the new one", CORE),
    product(
        "W14",
        "R4",
        "what was made before its record came anew ends before the records of its children",
        CORE,
    ),
    product("W15", "R8", "what goes while an attempt makes it again is not put back", CORE),
    product(
        "W16",
        "G5",
        "what a task puts again is awaited until the task ends, which may wait for whoever needs it",
        CORE,
    ),
    product("W17", "G8", "an attempt that ends before its arguments have come waits for them for ever", CORE),
    product(
        "W18",
        "limits",
        "the time of an attempt that has ended counts for the next one of that number",
        CORE,
    ),
    product("W19", "limits", "an attempt that counts no more may run for ever", CORE),
    product("W20", "R3", "what failed here stays failed though the attempt that counts has made it", CORE),
    product("W21", "liveness", "an attempt for nobody waits for ever for what nobody knows", CORE),
    product("W22", "R16", "what waits for a lost argument takes the room of what would make it again", CORE),
    product(
        "W23",
        "liveness",
        "what waits for what nobody knows, and nobody needs, waits until its job ends",
        CORE,
    ),
    product("W24", "G3", "what stands behind an attempt that does not count is made of its value", CORE),
    product("W25", "G5", "a spare copy goes although a task has come to use it", CORE),
    product("W26", "G5", "of what lies in the way of itself in a store only a part moves aside", CORE),
    product(
        "W27",
        "G8",
        "what was given to whoever does not want it any more stays where it is looked at",
        CORE,
    ),
    product("W28", "G5", "a task goes on whose put was damaged, and may wait for whoever needs that", CORE),
    product("W29", "R4", "what stands behind a failure ends before its worker has said so", CORE),
    product(
        "W30",
        "R16",
        "a node is full of tasks of another that wait inside there, and gets nothing more",
        CORE,
    ),
    product("W31", "R16", "tasks that wait inside fill the bundle of their placement group", GROUPS),
    product(
        "W32",
        "R16",
        "a task begins without a CPU behind one that waited, since it was on its way there",
        CORE,
    ),
    product("W33", "R4", "an item of a stream is told before what lies inside is on record", CORE),
    product("W34", "R16", "an attempt at a stream that counts no more waits for ever to be taken from", CORE),
    product(
        "W35",
        "G3",
        "an item of a stream that another attempt makes otherwise is told all the same",
        CORE,
    ),
    product("W36", "R8", "an item of a stream is let go of before whoever takes it holds it", CORE),
    product("W37", "hedges", "more tasks are hedged than their job wants", CORE),
    product("W38", "R7", "what a straggler made first is recorded under the number of its attempt", CORE),
    product("W39", "hedges", "tasks are hedged that do not say that they are pure", CORE),
    product(
        "W40",
        "R7",
        "an attempt whose end was refused is run again when its task is submitted again",
        CORE,
    ),
    product("W41", "G8", "an attempt that counts no more is remembered when its worker hands it back", CORE),
    product("W42", "G8", "what a node was to make again is remembered when it keeps it no longer", CORE),
    product("W43", "G8", "what is being recovered is remembered when its job has ended", CORE),
    product("W44", "G8", "whom the puts of a driver concerned is remembered for ever", CORE),
    product("W45", "R6", "a copy whose record is still on its way is given up", CORE),
    product(
        "W46",
        "G5",
        "a task that nobody needs waits inside for what nobody knows until its job ends",
        CORE,
    ),
    product("W47", "R7", "a refusal takes along what was submitted anew meanwhile", CORE),
    product(
        "W48",
        "R6",
        "an end that came between an edge and its record, which is there again, takes the edge along",
        CORE,
    ),
    product("W49", "R2", "what returned in parts passes for made when its mark lies here", CORE),
    product("W50", "R6", "a record that goes takes along an edge of its next life", CORE),
    product(
        "W51",
        "R4",
        "an item of a job that is not counted leaves before what lies inside is on record",
        CORE,
    ),
    product("W52", "R6", "a record that is given up takes along the edge of another's", CORE),
    product("W53", "G8", "what runs beside a task that has ended is not taken back", CORE),
    product("W54", "G3", "an item of a stream is told though another lies where it is taken", CORE),
    product(
        "W55",
        "S24",
        "a stream that was made otherwise, by a node that died, says that it was cancelled",
        CORE,
    ),
    product(
        "W56",
        "R8",
        "what was let go of before its last attempt ended passes for known until then",
        CORE,
    ),
];

/// The bug of this name.
pub fn find(id: &str) -> Option<&'static Mutant> {
    MUTANTS.iter().find(|mutant| mutant.id == id)
}
