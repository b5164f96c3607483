//! What a task returns that makes one item after the other: the worker's side of a stream.
//!
//! Each item is put as soon as it is made, at a place that follows from its number. The worker refers to it until whoever
//! takes it does, and makes no more than the window allows before some are taken.

use crate::client::{Client, State, told_to_stop};
use crate::context;
use crate::exec::{guarded, no_room};
use crate::reference::ObjectRef;
use crate::value::{self, Encoded};
use mobula_base::ids::STREAM_ITEMS_MAX;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Failure, FailureKind, INLINE_MAX, Shared};
use serde::{Serialize, Serializer};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::marker::PhantomData;

/// What a function returns whose items are to be there one after the other, while it still makes more:
///
/// ```
/// #[mobula::remote]
/// fn squares(n: u64) -> mobula::Streamed<u64> {
///     mobula::Streamed::new((0..n).map(|i| i * i))
/// }
/// # fn main() {}
/// ```
///
/// It is submitted by [`Client::submit_stream`]. The iterator runs in the worker, inside the task, and is asked for an item
/// only while no more than the window are made and not taken. It must make the same items in every attempt.
pub struct Streamed<T> {
    items: Cell<Option<Flow>>,
    marker: PhantomData<fn() -> T>,
}

impl<T: Serialize> Streamed<T> {
    /// Of everything that the iterator gives.
    pub fn new<I>(items: I) -> Self
    where
        I: IntoIterator<Item = T>,
        I::IntoIter: Send + 'static,
    {
        let mut items = items.into_iter();
        Streamed::of(move || items.next().map(|item| encode_item(&item)))
    }

    /// The same of an iterator that may fail: then the task fails with the text of that error, after the items before it.
    pub fn fallible<I, E>(items: I) -> Self
    where
        I: IntoIterator<Item = Result<T, E>>,
        I::IntoIter: Send + 'static,
        E: Display,
    {
        let mut items = items.into_iter();
        Streamed::of(move || {
            Some(match items.next()? {
                Ok(item) => encode_item(&item),
                Err(error) => Err(Failure::new(FailureKind::FailureUserError, format!("{error:#}"))),
            })
        })
    }

    fn of(next: impl FnMut() -> Option<Result<Encoded, Failure>> + Send + 'static) -> Self {
        Streamed { items: Cell::new(Some(Flow(Box::new(next)))), marker: PhantomData }
    }
}

fn encode_item<T: Serialize>(item: &T) -> Result<Encoded, Failure> {
    value::encode(item).map_err(|why| Failure::new(FailureKind::FailureUserError, why))
}

impl<T> fmt::Debug for Streamed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streamed")
    }
}

/// What is left of a stream in its worker: gives the next item, encoded.
pub(crate) struct Flow(Box<dyn FnMut() -> Option<Result<Encoded, Failure>> + Send>);

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flow")
    }
}

thread_local! {
    /// Where a stream goes that is being encoded on this thread; `None`: there is no place for one.
    static FOUND: RefCell<Option<Vec<Flow>>> = const { RefCell::new(None) };
    /// Why the last one went nowhere.
    static REFUSED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Why a stream that was encoded on this thread was none, if so. (The encoding keeps no words.)
pub(crate) fn refusal() -> Option<String> {
    REFUSED.take().map(str::to_owned)
}

fn refuse<E: serde::ser::Error>(why: &'static str) -> E {
    REFUSED.set(Some(why));
    E::custom(why)
}

impl<T> Serialize for Streamed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let flow = self.items.take().ok_or_else(|| refuse::<S::Error>("a stream can be returned once"))?;
        FOUND.with(|found| match &mut *found.borrow_mut() {
            Some(found) => {
                found.push(flow);
                Ok(())
            }
            None => Err(refuse(
                "a stream is no value: submit its task by `submit_stream`, and put no stream inside a value",
            )),
        })?;
        serializer.serialize_unit()
    }
}

/// Takes the stream out of what a function returned.
///
/// # Errors
/// It returned something else.
pub(crate) fn encode<T: Serialize>(out: &T) -> Result<Encoded, Failure> {
    FOUND.with(|found| found.replace(Some(Vec::new())));
    let encoded = value::encode(out);
    let mut found = FOUND.with(|found| found.replace(None)).unwrap_or_default();
    let failed = |why: String| Failure::new(FailureKind::FailureBadArguments, why);
    let encoded = encoded.map_err(|why| failed(refusal().unwrap_or(why)))?;
    match (found.pop(), found.is_empty() && encoded.bytes.is_empty()) {
        (Some(flow), true) => Ok(Encoded { flow: Some(flow), ..Encoded::default() }),
        _ => Err(failed(format!(
            "{} is not a stream: a task is submitted by `submit_stream` if its function returns `Streamed`",
            std::any::type_name::<T>()
        ))),
    }
}

/// So many items must have been taken before a worker goes on, and if it is not so, that many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    at_once: u32,
    after_waiting: u32,
}

/// A stream that is being made: what has been put of it, and how far it is.
pub(crate) struct Flowing {
    task: TaskId,
    window: u32,
    made: u32,
    /// Those that may not be held by anybody else yet, the oldest first.
    held: VecDeque<ObjectRef<()>>,
    sums: crc32fast::Hasher,
}

impl Flowing {
    pub fn new(task: TaskId, window: u32) -> Self {
        Flowing {
            task,
            window: window.max(1),
            made: 0,
            held: VecDeque::new(),
            sums: crc32fast::Hasher::new(),
        }
    }

    /// When the next item is made. Who has to wait does so until half of the window is free: else each item that is taken
    /// would wake its worker for one more.
    pub fn turn(&self) -> Turn {
        let at_once = (self.made + 1).saturating_sub(self.window);
        Turn { at_once, after_waiting: at_once.max(self.made.saturating_sub(self.window / 2)) }
    }

    /// When the task ends: whoever takes the items holds all of them then.
    pub fn end(&self) -> Turn {
        Turn { at_once: self.made, after_waiting: self.made }
    }

    /// So many are held by whoever takes them.
    pub fn taken(&mut self, taken: u32) {
        while self.held.len() > self.made.saturating_sub(taken) as usize {
            self.held.pop_front();
        }
    }

    /// The next item, and its place. A panic of user code is an end like another: what was made before can be taken.
    fn next(&self, flow: &mut Flow) -> Result<Option<(ObjectId, Encoded)>, Failure> {
        let Some(item) = guarded(|| flow.0().transpose())? else { return Ok(None) };
        if self.made < STREAM_ITEMS_MAX {
            return Ok(Some((self.task.item(self.made), item)));
        }
        Err(Failure::new(
            FailureKind::FailureUserError,
            format!("a stream of more than {STREAM_ITEMS_MAX} items: put several things into one item"),
        ))
    }

    /// An item was put.
    pub fn put(&mut self, item: ObjectRef<()>, crc: u32, size: u64) {
        self.made += 1;
        self.held.push_back(item);
        self.sums.update(&crc.to_le_bytes());
        self.sums.update(&size.to_le_bytes());
    }

    /// What stands for the whole: by it a further attempt is compared.
    pub fn mark(self) -> Result<Encoded, Failure> {
        value::encode(&(self.made, self.sums.finalize()))
            .map_err(|why| Failure::new(FailureKind::FailureUserError, why))
    }
}

impl Client {
    /// How many items of the stream that runs here are taken, once that is enough.
    fn taken_now(
        &self,
        task: TaskId,
        enough: u32,
    ) -> impl FnMut(&mut State) -> Option<Result<u32, Failure>> + use<> {
        move |state| {
            let taken = state.taken.get(&task).copied().unwrap_or(0);
            match state.stopped {
                true => Some(Err(told_to_stop())),
                false => (taken >= enough).then_some(Ok(taken)),
            }
        }
    }

    /// Waits until so many items are taken. Meanwhile the CPU is others' (R16).
    fn wait_taken(&self, task: TaskId, turn: Turn) -> Result<u32, Failure> {
        let known = self.taken_now(task, turn.at_once)(&mut self.state());
        let later = || self.wait_sync(None, self.taken_now(task, turn.after_waiting));
        known.unwrap_or_else(|| self.blocking(later).unwrap_or_else(|e| Err(lost(&e))))
    }

    /// As [`Client::wait_taken`], without blocking the thread.
    async fn wait_taken_async(&self, task: TaskId, turn: Turn) -> Result<u32, Failure> {
        let known = self.taken_now(task, turn.at_once)(&mut self.state());
        if let Some(known) = known {
            return known;
        }
        self.block(false);
        let taken = self.wait_async(self.taken_now(task, turn.after_waiting)).await;
        self.unblock();
        taken.unwrap_or_else(|e| Err(lost(&e)))
    }

    /// Makes the items of a stream, one after the other, and waits until all are taken.
    pub(crate) fn run_flow(&self, mut flowing: Flowing, mut flow: Flow) -> Result<Encoded, Failure> {
        let failed = loop {
            flowing.taken(self.wait_taken(flowing.task, flowing.turn())?);
            let (id, item) = match flowing.next(&mut flow) {
                Ok(Some(next)) => next,
                Ok(None) => break None,
                Err(failure) => break Some(failure),
            };
            let is_large = item.bytes.len() > INLINE_MAX;
            match is_large.then(|| self.place(id, &item.bytes)).transpose() {
                Ok(placed) => self.put_item(&mut flowing, id, item, placed),
                Err(error) => break Some(no_room(error)),
            }
        };
        let taken = self.wait_taken(flowing.task, flowing.end())?;
        end_flow(flowing, taken, failed)
    }

    /// As [`Client::run_flow`], without blocking the thread.
    pub(crate) async fn run_flow_async(
        &self,
        mut flowing: Flowing,
        mut flow: Flow,
    ) -> Result<Encoded, Failure> {
        let failed = loop {
            flowing.taken(self.wait_taken_async(flowing.task, flowing.turn()).await?);
            let (id, item) = match context::enter(self.clone(), || flowing.next(&mut flow)) {
                Ok(Some(next)) => next,
                Ok(None) => break None,
                Err(failure) => break Some(failure),
            };
            let placed = match item.bytes.len() > INLINE_MAX {
                true => self.place_async(id, &item.bytes).await.map(Some),
                false => Ok(None),
            };
            match placed {
                Ok(placed) => self.put_item(&mut flowing, id, item, placed),
                Err(error) => break Some(no_room(error)),
            }
        };
        let taken = self.wait_taken_async(flowing.task, flowing.end()).await?;
        end_flow(flowing, taken, failed)
    }

    fn put_item(&self, flowing: &mut Flowing, id: ObjectId, item: Encoded, placed: Option<Shared>) {
        let size = item.bytes.len() as u64;
        let placed = placed.map(|shared| shared.crc);
        let crc = placed.unwrap_or_else(|| crc32fast::hash(&item.bytes));
        let item = match placed {
            Some(_) => Encoded { references: item.references, ..Encoded::default() },
            None => item,
        };
        flowing.put(self.made(id, item, placed, 0), crc, size);
    }

    /// A stream has ended here: of what is taken of it nobody hears any more.
    pub(crate) fn end_flow_of(&self, task: TaskId) {
        let mut state = self.state();
        state.running = None;
        state.taken.remove(&task);
    }
}

fn end_flow(mut flowing: Flowing, taken: u32, failed: Option<Failure>) -> Result<Encoded, Failure> {
    flowing.taken(taken);
    match failed {
        Some(failure) => Err(failure),
        None => flowing.mark(),
    }
}

fn lost(error: &crate::error::Error) -> Failure {
    Failure::new(FailureKind::FailureUserError, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mobula_base::JobId;

    fn task() -> TaskId {
        TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, 3)
    }

    fn flow(out: &impl Serialize) -> Flow {
        encode(out).expect("a stream").flow.expect("it is taken out")
    }

    fn item(flowing: &mut Flowing, flow: &mut Flow) -> Option<u64> {
        let (id, item) = flowing.next(flow).expect("none fails")?;
        flowing.put(ObjectRef::new(id, None), crc32fast::hash(&item.bytes), item.bytes.len() as u64);
        Some(value::decode(&item.bytes).expect("a number"))
    }

    #[test]
    fn items_are_made_one_by_one_and_held_until_they_are_taken() {
        let mut flow = flow(&Streamed::new(5..8u64));
        let mut flowing = Flowing::new(task(), 2);
        let mut turns = Vec::new();
        while item(&mut flowing, &mut flow).is_some() {
            turns.push(flowing.turn().at_once);
        }
        assert_eq!((turns, flowing.end().at_once), (vec![0, 1, 2], 3), "two may wait to be taken");
        flowing.taken(1);
        assert_eq!(flowing.held.front().map(ObjectRef::id), Some(task().item(1)));
        flowing.taken(u32::MAX);
        assert!(flowing.held.is_empty());
        let mark = flowing.mark().expect("plain").bytes;
        assert_eq!(value::decode::<(u32, u32)>(&mark).expect("a mark").0, 3);
    }

    #[test]
    fn who_has_waited_goes_on_when_half_of_the_window_is_free() {
        for (window, made, at_once, after_waiting) in [
            (1, 0, 0, 0),
            (1, 5, 5, 5),
            (2, 5, 4, 4),
            (3, 5, 3, 4),
            (8, 5, 0, 1),
            (8, 8, 1, 4),
            (8, 20, 13, 16),
        ] {
            let flowing = Flowing { made, ..Flowing::new(task(), window) };
            assert_eq!(flowing.turn(), Turn { at_once, after_waiting }, "{window} {made}");
            // Whoever takes all that there is never waits for what waits for it.
            assert!(at_once <= made && after_waiting <= made);
        }
    }

    #[test]
    fn a_mark_tells_other_items_apart() {
        let mark = |items: &[u64]| {
            let mut flowing = Flowing::new(task(), 100);
            let mut flow = flow(&Streamed::new(items.to_vec()));
            while item(&mut flowing, &mut flow).is_some() {}
            flowing.mark().expect("plain").bytes
        };
        assert_eq!(mark(&[1, 2]), mark(&[1, 2]));
        assert!(
            mark(&[1, 2]) != mark(&[2, 1]) && mark(&[1, 2]) != mark(&[1, 2, 2]) && mark(&[]) != mark(&[1])
        );
    }

    #[test]
    fn errors_and_panics_of_the_iterator_are_the_tasks() {
        let fails = |out: Streamed<u64>| {
            let (mut flow, mut flowing) = (flow(&out), Flowing::new(task(), 100));
            item(&mut flowing, &mut flow).expect("the first is well");
            flowing.next(&mut flow).expect_err("the second is not")
        };
        let error = fails(Streamed::fallible([Ok(1), Err("no")]));
        assert_eq!((error.kind(), &error.message[..]), (FailureKind::FailureUserError, "no"));
        let panic = fails(Streamed::new((0..2u64).map(|n| if n == 1 { panic!("on purpose") } else { n })));
        assert_eq!((panic.kind(), &panic.message[..]), (FailureKind::FailurePanic, "on purpose"));
        let mut many = Flowing { made: STREAM_ITEMS_MAX, ..Flowing::new(task(), 1) };
        let refused = many.next(&mut flow(&Streamed::new(0..1u64))).expect_err("one too many");
        assert!(refused.message.contains("more than 1048576 items"), "{}", refused.message);
        many.made -= 1;
        assert!(matches!(many.next(&mut flow(&Streamed::new(0..1u64))), Ok(Some(_))));
    }

    #[test]
    fn what_is_no_stream_and_what_holds_one_says_so() {
        let why = |out: Result<Encoded, Failure>| out.expect_err("it is refused").message;
        let stream = || Streamed::new(0..1u64);
        for refused in [why(encode(&7u64)), why(encode(&())), why(encode(&(stream(), 1u8)))] {
            assert!(refused.contains("is not a stream"), "{refused}");
        }
        assert!(why(encode(&(stream(), stream()))).contains("is not a stream"));
        // One that is a value to its submitter.
        let refused = crate::function::encode_value(&stream()).expect_err("there is no place for it");
        assert!(refused.message.contains("submit_stream"), "{}", refused.message);
        let once = stream();
        assert!(encode(&once).is_ok());
        assert!(why(encode(&once)).contains("once"));
    }
}
