//! Finding the leader and repeating safely.
//!
//! Every request carries an identity of its own (incarnation and sequence, or session and
//! sequence), so the same bytes are sent until somebody answers: the store answers a repetition
//! with the first answer. A head that is gone costs no waiting: its refusal is immediate, and the
//! others are asked at once.
//!
//! Read it in this order: this file (state, connecting), `route` (whom to ask), `pipe` (many proposals
//! over one stream), `slots` (which shard to ask), `calls`, `reads` and `admin` (the requests), [`watch`] (changes of keys, as they
//! come).

mod admin;
pub mod calls;
mod pipe;
mod reads;
mod route;
mod slots;
pub mod watch;

use crate::error::Error;
use mobula_base::SlotMap;
use mobula_base::random::Random;
use mobula_net::grpc::{self, Channel};
use mobula_net::seam::SharedNet;
use mobula_proto as proto;
use pipe::Pipe;
use proto::control_store_client::ControlStoreClient;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

/// One attempt at one head may take this long, unless the request itself waits.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A client of the control store; clones share connections, leaders and sessions.
#[derive(Clone)]
pub struct Client {
    net: SharedNet,
    state: Arc<Mutex<State>>,
    callers: Arc<Mutex<BTreeMap<u32, Arc<tokio::sync::Mutex<Caller>>>>>,
}

struct State {
    /// All known heads.
    heads: Vec<String>,
    /// Those that were named at first.
    named: Vec<String>,
    /// When the list was last compared with a head's.
    refreshed: Option<Instant>,
    channels: BTreeMap<String, (u64, Store)>,
    leaders: BTreeMap<u32, String>,
    cluster: u64,
    shards: u32,
    /// Which shard has what.
    slots: Arc<SlotMap>,
    random: Random,
    /// How often each method was asked again.
    retries: BTreeMap<&'static str, u64>,
}

/// A connection to one head; clones share it.
#[derive(Clone)]
struct Store {
    calls: ControlStoreClient<Channel>,
    pipe: Arc<Mutex<Option<Pipe>>>,
}

impl Store {
    /// As the call of the same name, but over the stream that all callers share.
    async fn propose(
        &mut self,
        request: proto::ProposeRequest,
    ) -> Result<tonic::Response<proto::ProposeReply>, tonic::Status> {
        let pipe = {
            let mut known = self.pipe.lock().expect("nothing panics under this lock");
            match &*known {
                Some(open) if open.is_open() => open.clone(),
                _ => known.insert(pipe::open(self.calls.clone())).clone(),
            }
        };
        pipe.ask(request).await.map(tonic::Response::new)
    }
}

impl std::ops::Deref for Store {
    type Target = ControlStoreClient<Channel>;
    fn deref(&self) -> &Self::Target {
        &self.calls
    }
}

impl std::ops::DerefMut for Store {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.calls
    }
}

/// One session with one shard; its lock keeps one request under way at a time.
#[derive(Default)]
struct Caller {
    /// 0: to be opened.
    session: u64,
    seq: u64,
    used: Option<Instant>,
    /// The outcome of the last request is not known, so its session ends with it.
    unsure: bool,
}

impl Client {
    /// A client of the cluster of which at least one of `heads` is a member. Connects when used.
    pub fn new(net: SharedNet, heads: Vec<String>, seed: u64) -> Self {
        let state = State {
            named: heads.clone(),
            heads,
            refreshed: None,
            channels: BTreeMap::new(),
            leaders: BTreeMap::new(),
            cluster: 0,
            shards: 0,
            slots: Arc::new(SlotMap::even(1)),
            random: Random::new(seed).fork("control store client"),
            retries: BTreeMap::new(),
        };
        Client { net, state: Arc::new(Mutex::new(state)), callers: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    /// Learns which cluster this is, how many shards it has, and all its heads.
    ///
    /// # Errors
    /// No head answered within `deadline`, or none is part of a cluster yet, or all that answer want a
    /// token.
    pub async fn connect(&self, deadline: Duration) -> Result<(), Error> {
        let until = Instant::now() + deadline;
        let mut last = "nothing was asked".to_owned();
        loop {
            let (mut stranger, mut others) = (None, false);
            for head in self.heads() {
                match self.status_of(&head).await {
                    Ok(status) if status.cluster != 0 => {
                        let mut state = self.state();
                        state.cluster = status.cluster;
                        state.shards = status.shards.len() as u32;
                        state.slots = Arc::new(SlotMap::even(state.shards));
                        drop(state);
                        self.learn_slots(status.view.as_ref());
                        self.learn(status.heads);
                        return Ok(());
                    }
                    Ok(_) => {
                        others = true;
                        last = format!("{head} is still waiting for the other heads");
                    }
                    Err(error @ Error::NeedsToken { .. }) => stranger = Some(error),
                    Err(error) => last = error.to_string(),
                }
            }
            // It does not become known by waiting.
            if let Some(stranger) = stranger.filter(|_| !others) {
                return Err(stranger);
            }
            if Instant::now() >= until {
                return Err(Error::Unreachable { heads: self.heads(), last });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Identity of the cluster, 0 before [`Client::connect`].
    pub fn cluster(&self) -> u64 {
        self.state().cluster
    }

    /// Number of shards, 0 before [`Client::connect`].
    pub fn shards(&self) -> u32 {
        self.state().shards
    }

    /// Addresses of all known heads.
    pub fn heads(&self) -> Vec<String> {
        self.state().heads.clone()
    }

    /// How often each method was asked another time, of the same head or of another, for want of an
    /// answer. A method that was asked and never again is there with 0.
    pub fn retries(&self) -> BTreeMap<&'static str, u64> {
        self.state().retries.clone()
    }

    /// `method` is asked, perhaps again.
    fn count_try(&self, method: &'static str, again: bool) {
        *self.state().retries.entry(method).or_default() += u64::from(again);
    }

    /// What one head says of itself; it need not lead anything.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn status_of(&self, address: &str) -> Result<proto::StatusReply, Error> {
        let unreachable = |last: String| Error::Unreachable { heads: vec![address.to_owned()], last };
        let (number, mut store) = self.store(address).map_err(|error| unreachable(error.to_string()))?;
        match tokio::time::timeout(ATTEMPT, store.status(proto::StatusRequest {})).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => {
                self.hang_up(address, number);
                if status.code() == Code::Unauthenticated {
                    let (address, shown) = (address.to_owned(), self.net.token().is_some());
                    return Err(Error::NeedsToken { address, shown });
                }
                Err(unreachable(status.message().to_owned()))
            }
            Err(_) => {
                self.hang_up(address, number);
                Err(unreachable(format!("no answer within {ATTEMPT:?}")))
            }
        }
    }

    /// The connection to a head, and its number.
    fn store(&self, address: &str) -> Result<(u64, Store), tonic::transport::Error> {
        let mut state = self.state();
        if let Some((number, store)) = state.channels.get(address) {
            return Ok((*number, store.clone()));
        }
        let number = state.random.next_u64();
        let calls = ControlStoreClient::new(grpc::channel(self.net.clone(), address)?)
            .max_decoding_message_size(grpc::MESSAGE_MAX)
            .max_encoding_message_size(grpc::MESSAGE_MAX);
        let store = Store { calls, pipe: Arc::default() };
        state.channels.insert(address.to_owned(), (number, store.clone()));
        Ok((number, store))
    }

    /// Drops a connection that may be half open, unless it has been replaced already.
    fn hang_up(&self, address: &str, number: u64) {
        let mut state = self.state();
        if state.channels.get(address).is_some_and(|(open, _)| *open == number) {
            state.channels.remove(address);
        }
    }
}
