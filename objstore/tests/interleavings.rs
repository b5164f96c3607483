//! The protocol of the shared memory, in every order in which processes can take their turns.
//!
//! Nothing in the memory itself keeps processes apart: a process reads and writes it without a lock, and
//! what it may touch follows from the messages between it and the daemon alone. Here each process is a
//! thread of a model checker. The lock around the real [`Store`] stands for the daemon's one thread, and
//! taking it for a message and its answer. The memory is made of cells that fail a story as soon as one
//! process can write what another touches with no message that orders the two. So a story that passes has
//! shown that the messages suffice.

use loom::cell::Cell;
use loom::sync::Mutex;
use loom::thread::{self, JoinHandle};
use mobula_base::{JobId, ObjectId, TaskId};
use mobula_objstore::arena::ALIGN;
use mobula_objstore::table::{Creator, Place};
use mobula_objstore::{Reader, Store, StoreError};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

const JOB: JobId = JobId(1);
const OTHER_JOB: JobId = JobId(2);
/// Every object is one line of the arena long: memory is so tight that a freed place is used at once.
const LEN: u64 = ALIGN;
/// Cells of a line: two, so that an object can be half written.
const CELLS: u64 = 2;
/// How often the turn may be taken from a process that could go on, in one order of turns. Three let each of
/// three processes be interrupted in the midst of something; without a bound, stories of three processes take
/// minutes.
const PREEMPTIONS_MAX: usize = 3;
/// At least as many steps as any process takes: it lives.
const LIVES: u32 = 16;

/// What was seen to happen in one order or another. A story in which nothing happens shows nothing, so each
/// says what must be among it.
type Seen = Arc<std::sync::Mutex<BTreeSet<String>>>;

/// The daemon and the memory of one node. Processes share it by an `Rc`, as the model checker plays them all
/// on one thread and another counter would be one more thing that orders them.
struct Node {
    store: Mutex<Store>,
    memory: Vec<Cell<u32>>,
    seen: Seen,
}

impl Node {
    fn new(lines: u64, seen: Seen) -> Rc<Self> {
        let memory = (0..lines * CELLS).map(|_| Cell::new(0)).collect();
        Rc::new(Node { store: Mutex::new(Store::new(lines * LEN)), memory, seen })
    }

    /// The daemon does something: nobody else is served meanwhile.
    fn daemon<T>(&self, what: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store.lock().expect("a story ends with its first failure");
        let answer = what(&mut store);
        store.check_invariants();
        answer
    }

    fn cells(&self, offset: u64) -> &[Cell<u32>] {
        let first = offset / LEN * CELLS;
        &self.memory[first as usize..(first + CELLS) as usize]
    }

    fn note(&self, what: impl Into<String>) {
        self.seen.lock().expect("a story ends with its first failure").insert(what.into());
    }

    /// A process that ends after so many steps, in the midst of whatever it does. The system closes its
    /// link when it is no more, so the daemon hears of that after its last access.
    fn start(
        self: &Rc<Self>,
        link: Creator,
        steps: u32,
        story: impl FnOnce(&Process) -> Alive<()> + 'static,
    ) -> JoinHandle<()> {
        let process = Process { node: self.clone(), link, left: steps.into() };
        thread::spawn(move || {
            if story(&process).is_err() {
                process.node.note("died");
                process.node.daemon(|store| store.creator_gone(link));
            }
        })
    }

    /// The node holds an object before the story begins.
    fn has(self: &Rc<Self>, object: ObjectId, crc: u32) {
        let maker = Process { node: self.clone(), link: MAKER, left: LIVES.into() };
        assert!(maker.make(object, crc, JOB).is_ok_and(|made| made.is_ok()), "there is room");
    }
}

/// The process has ended.
struct Died;
type Alive<T> = Result<T, Died>;

/// A worker or driver: what it asks of the daemon, and what it does to memory between.
struct Process {
    node: Rc<Node>,
    link: Creator,
    /// Steps until it ends.
    left: std::cell::Cell<u32>,
}

impl Process {
    fn step(&self) -> Alive<()> {
        self.left.set(self.left.get().checked_sub(1).ok_or(Died)?);
        Ok(())
    }

    fn ask<T>(&self, what: impl FnOnce(&mut Store) -> T) -> Alive<T> {
        self.step()?;
        Ok(self.node.daemon(what))
    }

    /// Creates, writes and seals an object, all of whose cells are its checksum.
    fn make(&self, object: ObjectId, crc: u32, job: JobId) -> Alive<Result<Place, StoreError>> {
        let offset = match self.ask(|store| store.create(object, LEN, job, self.link))? {
            Ok(offset) => offset,
            Err(error) => return Ok(Err(error)),
        };
        for cell in self.node.cells(offset) {
            self.step()?;
            cell.set(crc);
        }
        self.ask(|store| store.seal(object, crc, self.link))
    }

    /// The same, and what came of it is noted; one that finds no room asks once more.
    fn make_noted(&self, object: ObjectId, crc: u32, job: JobId) -> Alive<()> {
        for _ in 0..2 {
            match self.make(object, crc, job)? {
                Ok(place) => {
                    assert_eq!(place.crc, crc);
                    self.node.note(format!("made {crc}"));
                }
                Err(StoreError::Full { .. }) => {
                    self.node.note(format!("no room for {crc}"));
                    continue;
                }
                Err(error) => self.node.note(format!("{crc}: {error}")),
            }
            break;
        }
        Ok(())
    }

    /// Asks where an object is: from then on it is looked at.
    fn told(&self, object: ObjectId, reader: Reader) -> Alive<Option<Place>> {
        self.ask(|store| store.pin(object, reader).then(|| store.get(object).expect("pinned")))
    }

    /// Whoever was told a place finds there what was sealed there.
    fn read(&self, place: Place) -> Alive<()> {
        for cell in self.node.cells(place.offset) {
            self.step()?;
            assert_eq!(cell.get(), place.crc, "other bytes than were sealed");
        }
        Ok(())
    }

    /// Looks no longer.
    fn tell_back(&self, object: ObjectId, reader: Reader) -> Alive<()> {
        self.ask(|store| match reader {
            Reader::Task(link, task) => store.task_ended(link, task),
            Reader::Link(_) | Reader::Transfer(_) | Reader::Spill => store.unpin(object, reader),
        })
    }

    /// Looks at an object for as long as it takes to read it twice. A message lies between, so that the
    /// second time finds even what another process has written in good order.
    fn look(&self, object: ObjectId, reader: Reader) -> Alive<()> {
        let Some(place) = self.told(object, reader)? else {
            self.node.note("not there");
            return Ok(());
        };
        self.read(place)?;
        self.ask(|_| ())?;
        self.read(place)?;
        self.node.note(format!("read {}", place.crc));
        self.tell_back(object, reader)
    }
}

const MAKER: Creator = 1;
const WRITER: Creator = 2;
const OTHER: Creator = 3;
const READER: Creator = 4;
const LINK: Reader = Reader::Link(READER);

fn object(n: u32) -> ObjectId {
    TaskId::root(JOB).output(n)
}

fn discard_first(store: &mut Store) {
    store.discard(object(1));
}

fn free_first(store: &mut Store) {
    store.free_job(JOB);
}

fn task_of(link: Creator) -> Reader {
    Reader::Task(link, TaskId::root(JOB))
}

fn join(processes: impl IntoIterator<Item = JoinHandle<()>>) {
    for process in processes {
        process.join().expect("a story ends with its first failure");
    }
}

/// Plays a story in every order of turns, on a node of so many lines. Afterwards, when both jobs have ended
/// and nobody looks, all memory has come back. Says what was seen.
fn explore(lines: u64, story: impl Fn(&Rc<Node>) + Send + Sync + 'static) -> BTreeSet<String> {
    let seen = Seen::default();
    let of_all = seen.clone();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(move || {
        let node = Node::new(lines, of_all.clone());
        story(&node);
        node.daemon(|store| [JOB, OTHER_JOB].map(|job| store.free_job(job)));
        assert_eq!(node.daemon(|store| store.usage().0), 0, "memory leaks");
    });
    std::mem::take(&mut *seen.lock().expect("no story failed"))
}

fn check(seen: &BTreeSet<String>, must: &[&str]) {
    for what in must {
        assert!(seen.contains(*what), "{what:?} never happened, only {seen:?}");
    }
}

/// A process ends after each number of steps in turn, and at last not at all. What must happen must happen
/// for some of them.
fn dying_anywhere(must: &[&str], explore_with: impl Fn(u32) -> BTreeSet<String>) {
    let mut seen = BTreeSet::new();
    for steps in 0..=LIVES {
        let now = explore_with(steps);
        let lives = !now.contains("died");
        seen.extend(now);
        if lives {
            return check(&seen, must);
        }
    }
    panic!("it takes more than {LIVES} steps");
}

/// Two attempts make the same object while somebody asks for it.
fn two_make_one_asks(writer: u32, reader: u32) -> BTreeSet<String> {
    explore(2, move |node| {
        join([
            node.start(WRITER, writer, |process| process.make_noted(object(1), 41, JOB)),
            node.start(OTHER, LIVES, |process| process.make_noted(object(1), 42, JOB)),
            node.start(READER, reader, |process| process.look(object(1), LINK)),
        ]);
    })
}

/// An object goes while somebody looks at it, and another is made where there is room for one.
fn one_goes_one_comes(how: fn(&mut Store), reader: Reader, steps: u32) -> BTreeSet<String> {
    explore(1, move |node| {
        node.has(object(1), 41);
        let processes = [
            node.start(READER, steps, move |process| process.look(object(1), reader)),
            node.start(WRITER, LIVES, |process| process.make_noted(object(2), 42, OTHER_JOB)),
        ];
        node.daemon(how);
        join(processes);
    })
}

/// An object goes and is made again while somebody looks at it, and asks again before it tells the first
/// place back. What is here then goes, too, and a third object takes a place that became free.
fn made_again_elsewhere(steps: u32) -> BTreeSet<String> {
    explore(2, move |node| {
        node.has(object(1), 41);
        join([
            node.start(READER, steps, looks_at_both),
            node.start(WRITER, LIVES, |process| {
                process.ask(discard_first)?;
                process.make_noted(object(1), 42, JOB)
            }),
            node.start(OTHER, LIVES, |process| {
                process.ask(discard_first)?;
                process.make_noted(object(2), 43, JOB)
            }),
        ]);
    })
}

fn looks_at_both(process: &Process) -> Alive<()> {
    let Some(first) = process.told(object(1), LINK)? else {
        process.node.note("not there");
        return Ok(());
    };
    let second = process.told(object(1), LINK)?;
    if let Some(second) = second {
        assert_eq!(first.offset == second.offset, first == second, "two objects in one place");
        process.read(second)?;
        process.node.note(format!("read {} and {}", first.crc, second.crc));
    }
    process.read(first)?;
    // The one that was told first is the one that is told back first.
    process.tell_back(object(1), LINK)?;
    if let Some(second) = second {
        process.read(second)?;
        process.tell_back(object(1), LINK)?;
    }
    Ok(())
}

/// An object is there already when an attempt would make it, and then goes. The task of the attempt looks at
/// it, so what the attempt says it has made is put back, unless another makes it again or is about to.
fn put_back(steps: u32) -> BTreeSet<String> {
    explore(2, move |node| {
        node.has(object(1), 41);
        join([
            node.start(WRITER, steps, says_it_made_what_it_was_told),
            node.start(OTHER, LIVES, |process| {
                process.ask(discard_first)?;
                process.make_noted(object(1), 42, JOB)
            }),
            node.start(READER, LIVES, |process| process.look(object(1), LINK)),
        ]);
    })
}

fn says_it_made_what_it_was_told(process: &Process) -> Alive<()> {
    let (task, link) = (task_of(process.link), process.link);
    process.told(object(1), task)?;
    let (is_gone, sealed) = process.ask(|store| {
        let is_gone = store.get(object(1)).is_none();
        let place = store.seal(object(1), 41, link).ok();
        (is_gone, place.or_else(|| store.seal_again(object(1), 41, link)))
    })?;
    if let Some(place) = sealed {
        process.read(place)?;
    }
    process.node.note(match (is_gone, sealed) {
        (true, Some(_)) => "put back",
        (false, Some(_)) => "there still",
        (_, None) => "not put back",
    });
    process.tell_back(object(1), task)
}

/// A job ends while an object of it is written, and one of another job is made where there is room for one.
fn job_ends_midway(steps: u32) -> BTreeSet<String> {
    explore(1, move |node| {
        let processes = [
            node.start(WRITER, steps, |process| process.make_noted(object(1), 41, JOB)),
            node.start(OTHER, LIVES, |process| process.make_noted(object(2), 42, OTHER_JOB)),
        ];
        node.daemon(|store| store.free_job(JOB));
        join(processes);
    })
}

const BUSY: &str = "42: another process is writing this object";
const EXISTS: &str = "42: the object exists already";

#[test]
fn what_is_told_is_whole() {
    check(
        &two_make_one_asks(LIVES, LIVES),
        &["not there", "read 41", "read 42", "made 41", "made 42", BUSY, EXISTS],
    );
}

#[test]
fn a_place_is_not_given_away_while_somebody_looks() {
    for goes in [discard_first, free_first] {
        for reader in [LINK, task_of(READER), Reader::Transfer(1)] {
            let must = ["not there", "read 41", "no room for 42", "made 42"];
            check(&one_goes_one_comes(goes, reader, LIVES), &must);
        }
    }
}

#[test]
fn what_is_made_again_lies_elsewhere_while_somebody_looks_at_the_first() {
    let must =
        ["not there", "read 41 and 41", "read 41 and 42", "read 42 and 42", "no room for 43", "made 43"];
    check(&made_again_elsewhere(LIVES), &must);
}

#[test]
fn what_is_put_back_is_what_it_was() {
    check(
        &put_back(LIVES),
        &["put back", "there still", "not put back", "made 42", "read 41", "read 42", "not there"],
    );
}

#[test]
fn what_a_job_that_ended_still_writes_is_not_given_away() {
    let must = ["made 41", "41: the object was not created by this process", "no room for 42", "made 42"];
    check(&job_ends_midway(LIVES), &must);
}

#[test]
fn what_a_dead_writer_left_is_never_told() {
    dying_anywhere(&["died", "made 42", "read 42", BUSY], |steps| two_make_one_asks(steps, LIVES));
    dying_anywhere(&["died", "no room for 42", "made 42"], job_ends_midway);
    dying_anywhere(&["died", "put back", "read 42"], put_back);
}

#[test]
fn what_a_dead_reader_looked_at_is_free_once_it_is_dead() {
    dying_anywhere(&["died", "read 41", "read 42"], |steps| two_make_one_asks(LIVES, steps));
    for reader in [LINK, task_of(READER)] {
        dying_anywhere(&["died", "no room for 42", "made 42"], |steps| {
            one_goes_one_comes(discard_first, reader, steps)
        });
    }
    dying_anywhere(&["died", "no room for 43", "made 43", "read 41 and 42"], made_again_elsewhere);
}

/// The stories can fail: this reader breaks the protocol.
#[test]
#[should_panic(expected = "Causality violation")]
fn who_reads_what_it_told_back_is_caught() {
    explore(1, |node| {
        node.has(object(1), 41);
        let processes = [
            node.start(READER, LIVES, |process| {
                let Some(place) = process.told(object(1), LINK)? else { return Ok(()) };
                process.tell_back(object(1), LINK)?;
                process.read(place)
            }),
            node.start(WRITER, LIVES, |process| process.make_noted(object(2), 42, JOB)),
        ];
        node.daemon(|store| store.discard(object(1)));
        join(processes);
    });
}
