//! Taking what a task makes one after the other, while it still runs.

use crate::args::ArgBytes;
use crate::client::{Client, State, told_to_stop};
use crate::error::Error;
use crate::reference::ObjectRef;
use crate::streamed::Streamed;
use crate::task::Task;
use crate::value;
use mobula_base::ids::STREAM_WINDOW_MAX;
use mobula_base::{ObjectId, TaskId};
use mobula_proto::{Cancel, ClientMsg, Take, client_msg, task_bytes};
use std::marker::PhantomData;
use std::time::Duration;

/// So many items of a stream may be made before they are taken, unless its task says otherwise.
pub const DEFAULT_WINDOW: u32 = 16;
/// Items that one message takes at most.
const TAKES_MAX: u32 = 1024;

/// The items of a task that returns [`Streamed`], in order, each as soon as it is there.
///
/// An item is a reference like any other: it can be fetched, given to tasks, kept, and is made again should it be lost. The
/// task waits when it is [`Task::window`] items ahead. What ends the stream early (the task's failure, a lost worker that
/// may not be retried) comes as an error after the items that were made before.
///
/// A driver that drops the stream before its end cancels the task. What was taken of it stays, but is not made again. A task that does so lets it run on by itself, since
/// it may have to take the same again when it is run again; [`Stream::cancel`] ends it all the same.
pub struct Stream<T> {
    client: Client,
    task: TaskId,
    /// What stands for the whole once it is there.
    mark: ObjectRef<(u32, u32)>,
    taken: u32,
    ended: bool,
    marker: PhantomData<fn() -> T>,
}

/// What comes next.
enum Next {
    Item,
    End,
    Failed(Error),
}

impl<T> Task<Streamed<T>> {
    /// So many items may be made before they are taken ([`DEFAULT_WINDOW`] if nothing is said; 1 to 4,096: what is less or
    /// more counts as that). Items that are made and not taken are kept, in memory or in files.
    pub fn window(mut self, items: u32) -> Self {
        self.options().window = items.clamp(1, STREAM_WINDOW_MAX);
        self
    }
}

impl Client {
    /// Submits a task whose function returns [`Streamed`], and takes its items while it runs: never blocks.
    ///
    /// ```no_run
    /// #[mobula::remote]
    /// fn squares(n: u64) -> mobula::Streamed<u64> {
    ///     mobula::Streamed::new((0..n).map(|i| i * i))
    /// }
    ///
    /// # fn main() -> Result<(), mobula::Error> {
    /// # let client = mobula::Client::connect(mobula::ConnectOptions::default())?;
    /// for item in client.submit_stream(squares::task(1_000).window(8)) {
    ///     println!("{}", item?.get()?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn submit_stream<T>(&self, mut task: Task<Streamed<T>>) -> Stream<T> {
        let window = &mut task.options().window;
        *window = if *window == 0 { DEFAULT_WINDOW } else { *window };
        if !self.knows_streams() {
            task.error.get_or_insert_with(|| {
                "this node is of a release that knows no streams: start all nodes with the same release"
                    .to_owned()
            });
        }
        let task = self.hand_in(task);
        let mark = ObjectRef::new(task.output(0), Some(self.clone()));
        Stream { client: self.clone(), task, mark, taken: 0, ended: false, marker: PhantomData }
    }
}

impl<T> Stream<T> {
    /// The next item, as soon as it is there, and no later than after `timeout`: then [`Error::Timeout`], after which
    /// it can be asked for again. `None` at the end.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<Result<ObjectRef<T>, Error>> {
        self.next_within(Some(timeout))
    }

    fn next_within(&mut self, timeout: Option<Duration>) -> Option<Result<ObjectRef<T>, Error>> {
        if self.ended {
            return None;
        }
        let known = self.look(&mut self.client.state());
        let next = match known {
            Some(next) => Ok(next),
            None => self.client.blocking(|| self.client.wait_sync(timeout, |state| self.look(state))),
        };
        self.came(next)
    }

    /// The next item without blocking the thread: for `async` tasks.
    pub async fn next_async(&mut self) -> Option<Result<ObjectRef<T>, Error>> {
        if self.ended {
            return None;
        }
        let known = self.look(&mut self.client.state());
        let next = match known {
            Some(next) => Ok(next),
            None => {
                self.client.block(false);
                let next = self.client.wait_async(|state| self.look(state)).await;
                self.client.unblock();
                next
            }
        };
        self.came(next)
    }

    /// Cancels the task. What was made before can still be taken; then comes the failure.
    pub fn cancel(&self) {
        let cancel = Cancel { tasks: vec![task_bytes(self.task)], recursive: false };
        self.client.send(client_msg::Msg::Cancel(cancel));
    }

    /// So many items were taken.
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// What is known of the next item. Of a task that ended before anybody here took from it, only its mark says how
    /// many there are.
    fn look(&self, state: &mut State) -> Option<Next> {
        if state.items.get(&self.task).is_some_and(|made| self.taken < *made) {
            return Some(Next::Item);
        }
        if state.stopped {
            return Some(Next::Failed(told_to_stop().into()));
        }
        Some(match self.client.bytes_here(state, self.mark.id())? {
            Err(error) => Next::Failed(error),
            Ok(mark) => match made_of(&mark) {
                Ok(made) if self.taken < made => Next::Item,
                Ok(_) => Next::End,
                Err(why) => Next::Failed(Error::Value(why)),
            },
        })
    }

    fn came(&mut self, next: Result<Next, Error>) -> Option<Result<ObjectRef<T>, Error>> {
        match next {
            Ok(Next::Item) => Some(Ok(self.take())),
            Ok(Next::End) => {
                self.ended = true;
                None
            }
            Ok(Next::Failed(error)) => {
                self.ended = true;
                Some(Err(error))
            }
            Err(error) => {
                self.ended = !matches!(error, Error::Timeout(_));
                Some(Err(error))
            }
        }
    }

    fn take(&mut self) -> ObjectRef<T> {
        let (n, id) = (self.taken, self.task.item(self.taken));
        self.taken += 1;
        self.client.own_item(id, self.task, n);
        ObjectRef::new(id, Some(self.client.clone()))
    }
}

impl<T> Iterator for Stream<T> {
    type Item = Result<ObjectRef<T>, Error>;

    /// The next item, as soon as it is there.
    fn next(&mut self) -> Option<Self::Item> {
        self.next_within(None)
    }
}

impl<T> Drop for Stream<T> {
    fn drop(&mut self) {
        let is_driver = self.client.context.attempt == 0;
        if !self.client.end_items(self.task) {
            return;
        }
        if is_driver && !self.ended {
            self.cancel();
        }
        let (task, first) = (task_bytes(self.task), self.taken);
        self.client.send(client_msg::Msg::Take(Take { task, first, upto: first, over: true }));
    }
}

impl<T> std::fmt::Debug for Stream<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({}, {} taken)", self.task, self.taken)
    }
}

fn made_of(mark: &ArgBytes) -> Result<u32, String> {
    value::decode::<(u32, u32)>(mark.as_slice()).map(|(made, _)| made)
}

impl Client {
    /// This program refers to an item of a stream from here on; its daemon tells by itself when that is there.
    fn own_item(&self, id: ObjectId, task: TaskId, n: u32) {
        let mut state = self.state();
        let slot = state.slots.entry(id).or_default();
        slot.refs += 1;
        (slot.told, slot.asked) = (true, true);
        let task = task_bytes(task);
        self.shell.outbox.merge(|last| match last.and_then(|last| last.msg.as_mut()) {
            Some(client_msg::Msg::Take(take))
                if take.task == task && take.upto == n && n - take.first < TAKES_MAX && !take.over =>
            {
                take.upto += 1;
                None
            }
            _ => {
                let take = Take { task, first: n, upto: n + 1, over: false };
                Some(ClientMsg { msg: Some(client_msg::Msg::Take(take)) })
            }
        });
    }

    /// Takes no more of a stream; whether its daemon knows of it.
    fn end_items(&self, task: TaskId) -> bool {
        let mut state = self.state();
        state.items.remove(&task);
        state.slots.get(&task.output(0)).is_some_and(|slot| slot.told) && state.closed.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use bytes::BytesMut;
    use mobula_net::frame::Decoder;
    use mobula_net::written::Written;
    use mobula_objstore::Region;
    use mobula_proto::{
        DaemonMsg, Failure, ItemsMade, ObjectReady, ToClient, ToDaemon, Value, Welcome, daemon_msg,
        object_bytes, value as wire_value,
    };

    fn client(streams: bool) -> Client {
        let welcome = Welcome { job: 1, arena_bytes: 4096, streams, ..Welcome::default() };
        Client::new(welcome, Region::heap(4096), Written::default())
    }

    fn numbers() -> Task<Streamed<u64>> {
        Task::new("test", Args::default())
    }

    /// What has been said since the last look: `S` a submission, `T` items that are taken, `O` that no more are, `D` how many
    /// references are dropped, `C` that a task is cancelled.
    fn said(client: &Client) -> String {
        let mut said = Vec::new();
        let frames = client.shell.outbox.try_take(&mut BytesMut::new());
        let mut decoder = Decoder::default();
        frames.iter().for_each(|frame| decoder.buffer().extend_from_slice(frame));
        while let Some(frame) = decoder.next_message::<ToDaemon>().expect("a frame") {
            for ClientMsg { msg } in frame.msgs {
                said.push(match msg {
                    Some(client_msg::Msg::Submit(spec)) => {
                        format!("S{}", spec.options.map_or(0, |options| options.window))
                    }
                    Some(client_msg::Msg::Take(take)) if take.over => format!("O{}", take.upto),
                    Some(client_msg::Msg::Take(take)) => format!("T{}..{}", take.first, take.upto),
                    Some(client_msg::Msg::Dropped(dropped)) => format!("D{}", dropped.objects.len()),
                    Some(client_msg::Msg::Cancel(_)) => "C".to_owned(),
                    other => format!("{other:?}"),
                });
            }
        }
        said.join(" ")
    }

    fn hears(client: &Client, msg: daemon_msg::Msg) {
        client.receive(ToClient { msgs: vec![DaemonMsg { msg: Some(msg) }] });
    }

    fn made(client: &Client, stream: &Stream<u64>, items: u32) {
        hears(client, daemon_msg::Msg::ItemsMade(ItemsMade { task: task_bytes(stream.task), items }));
    }

    fn ended(client: &Client, stream: &Stream<u64>, value: wire_value::Value) {
        let object = object_bytes(stream.mark.id());
        let value = Some(Value { value: Some(value) });
        hears(client, daemon_msg::Msg::Ready(ObjectReady { object, value }));
    }

    fn mark(items: u32) -> wire_value::Value {
        wire_value::Value::Inline(value::encode(&(items, 7u32)).expect("plain").bytes.into())
    }

    fn now(stream: &mut Stream<u64>) -> Option<Result<ObjectRef<u64>, Error>> {
        stream.next_timeout(Duration::ZERO)
    }

    #[test]
    fn what_is_taken_in_a_row_is_told_at_once() {
        let client = client(true);
        let mut stream = client.submit_stream(numbers());
        assert!(matches!(now(&mut stream), Some(Err(Error::Timeout(_)))), "there is none yet");
        assert_eq!(said(&client), format!("S{DEFAULT_WINDOW}"));
        made(&client, &stream, 3);
        // What comes late says less.
        made(&client, &stream, 2);
        let items = [(); 3].map(|()| now(&mut stream).expect("one").expect("an item"));
        assert!(items.iter().zip(0..).all(|(item, n)| item.id() == stream.task.item(n)));
        assert_eq!(said(&client), "T0..3");
        assert!(matches!(now(&mut stream), Some(Err(Error::Timeout(_)))));
        ended(&client, &stream, mark(3));
        assert!(now(&mut stream).is_none() && stream.next().is_none());
        drop(items);
        drop(stream);
        assert_eq!(said(&client), "D3 O3 D1");
        let state = client.state();
        assert!(state.slots.is_empty() && state.items.is_empty());
    }

    #[test]
    fn of_a_stream_that_has_ended_the_mark_says_how_many_there_are() {
        let client = client(true);
        let mut stream = client.submit_stream(numbers().window(9999));
        ended(&client, &stream, mark(2));
        assert_eq!(stream.by_ref().filter(Result::is_ok).count(), 2);
        assert_eq!(said(&client), "S4096 T0..1 D1 T1..2 D1");
        drop(stream);
        assert_eq!(said(&client), "O2 D1", "it is not cancelled");
    }

    #[test]
    fn a_failure_comes_after_what_was_made() {
        let client = client(true);
        let mut stream = client.submit_stream(numbers().window(0));
        made(&client, &stream, 1);
        ended(
            &client,
            &stream,
            wire_value::Value::Failure(Failure { message: "no".into(), ..Default::default() }),
        );
        let item = now(&mut stream).expect("one").expect("an item");
        assert!(matches!(now(&mut stream), Some(Err(Error::Task { message, .. })) if message == "no"));
        assert!(now(&mut stream).is_none());
        drop((item, stream));
        assert_eq!(said(&client), "S1 T0..1 D1 O1 D1");
    }

    #[test]
    fn who_drops_it_early_cancels_it_unless_that_is_a_task() {
        let client = client(true);
        let stream = client.submit_stream(numbers().window(2));
        drop(stream);
        assert_eq!(said(&client), "S2 C O0 D1");
        let context = crate::context::Context::new(client.job(), Default::default(), 1, false);
        let in_task = client.for_task(context, crate::options::JobOptions::default());
        drop(in_task.submit_stream(numbers().window(2)));
        assert_eq!(said(&client), "S2 O0 D1");
    }

    #[test]
    fn what_never_left_the_program_fails_and_is_not_told() {
        let old = client(false);
        let mut stream = old.submit_stream(numbers());
        assert!(
            matches!(now(&mut stream), Some(Err(Error::Task { message, .. })) if message.contains("release"))
        );
        drop(stream);
        assert_eq!(said(&old), "");
        assert!(old.state().slots.is_empty() && old.state().items.is_empty());
    }
}
