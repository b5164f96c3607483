//! How a node's items become runs: neighbours that have most in common travel as one item.
//!
//! Packing changes neither order nor sequence numbers: a packed item stands for as many as it was
//! made of. So an acknowledgement means the same whether the batch was packed or not.

use super::places::Places;
use super::prune::is_plain;
use super::run::{DoneSet, OUTPUT_LEN};
use bytes::{BufMut, Bytes};
use mobula_base::ids::RUN_LEN;
use mobula_base::{ObjectId, RunId, TaskId};
use mobula_proto as proto;
use prost::Message;
use proto::stream_item::Item;

/// Packs the items of a batch.
pub fn pack(batch: proto::StreamBatch) -> proto::StreamBatch {
    let mut packed = Vec::new();
    let mut open = Open::Nothing;
    for item in batch.items {
        open = match (open, Kind::of(&item)) {
            (Open::Specs(mut specs), Kind::Spec(id)) if specs.takes(&item, id) => {
                specs.add(item);
                Open::Specs(specs)
            }
            (Open::Done(mut done), Kind::Done(id)) if done.takes(&item, id) => {
                done.add(item, id);
                Open::Done(done)
            }
            (Open::Releases(mut releases), Kind::Release(id)) if releases.takes(id) => {
                releases.add(id);
                Open::Releases(releases)
            }
            (before, kind) => {
                before.close(&mut packed);
                Open::begin(item, kind)
            }
        };
    }
    open.close(&mut packed);
    proto::StreamBatch { items: packed, ..batch }
}

/// The items that a packed batch was made of, each with its sequence number.
pub fn unpack(batch: &proto::StreamBatch) -> Vec<(u64, proto::StreamItem)> {
    let mut items = Vec::new();
    for item in &batch.items {
        let single = |item| proto::StreamItem { item: Some(item) };
        match &item.item {
            Some(Item::Run(run)) => items.extend(specs_of(run).map(|spec| single(Item::Submit(spec)))),
            Some(Item::RunDone(done)) => items.extend(dones_of(done).map(|done| single(Item::Done(done)))),
            Some(Item::RunRelease(run)) => {
                items.extend(releases_of(run).map(|release| single(Item::Release(release))));
            }
            _ => items.push(item.clone()),
        }
    }
    (batch.first_seq..).zip(items).collect()
}

fn specs_of(run: &proto::RunSpecs) -> impl Iterator<Item = proto::TaskSpec> + '_ {
    let ends = run.ends.chunks_exact(4).map(|end| u32::from_le_bytes(end.try_into().expect("four bytes")));
    ends.scan(0, |begin, end| {
        let spec = run.specs.slice(*begin as usize..end as usize);
        *begin = end;
        Some(proto::TaskSpec::decode(spec).expect("packed here"))
    })
}

fn dones_of(run: &proto::RunDone) -> impl Iterator<Item = proto::Done> + '_ {
    let set = DoneSet::new(run).zip(run.run[..].try_into().ok());
    let (set, id) = set.expect("packed here");
    let (run_id, executor) = (RunId(u128::from_be_bytes(id)), set.executor);
    let places: Vec<u16> = set.places.iter().collect();
    places.into_iter().map(move |place| proto::Done {
        task: proto::task_bytes(TaskId { run: run_id, place }),
        attempt: 1,
        executor,
        outputs: vec![set.output(place)],
        failure: None,
        holders: run.holders.clone(),
        contains: Vec::new(),
    })
}

fn releases_of(run: &proto::RunRelease) -> impl Iterator<Item = proto::Release> + '_ {
    let parts = Places::from_bytes(&run.places).zip(run.run[..].try_into().ok());
    let (places, id) = parts.expect("packed here");
    let run = RunId(u128::from_be_bytes(id));
    let places: Vec<u16> = places.iter().collect();
    let object = move |place| proto::object_bytes(TaskId { run, place }.output(0));
    places.into_iter().map(move |place| proto::Release { object: object(place) })
}

/// What an item could be packed as.
enum Kind {
    Spec(TaskId),
    Done(TaskId),
    Release(TaskId),
    Other,
}

impl Kind {
    fn of(item: &proto::StreamItem) -> Self {
        let id = |bytes: &[u8]| TaskId::from_bytes(bytes).filter(|id| u64::from(id.place) < RUN_LEN);
        match &item.item {
            Some(Item::Submit(spec)) => id(&spec.id).map_or(Kind::Other, Kind::Spec),
            Some(Item::Done(done)) if is_usual(done) => id(&done.task).map_or(Kind::Other, Kind::Done),
            Some(Item::Release(release)) => {
                let object = ObjectId::from_bytes(&release.object).filter(|object| object.slot == 0);
                object.and_then(|object| id(&object.task.to_bytes())).map_or(Kind::Other, Kind::Release)
            }
            _ => Kind::Other,
        }
    }
}

/// A first attempt that returned one value without references.
fn is_usual(done: &proto::Done) -> bool {
    done.attempt == 1 && done.failure.is_none() && done.outputs.len() == 1 && done.contains.is_empty()
}

/// Items that are being packed together.
enum Open {
    Nothing,
    Alone(proto::StreamItem),
    Specs(Specs),
    Done(Dones),
    Releases(Releases),
}

impl Open {
    fn begin(item: proto::StreamItem, kind: Kind) -> Self {
        match kind {
            Kind::Spec(id) => Open::Specs(Specs::begin(item, id)),
            Kind::Done(id) => Open::Done(Dones::begin(item, id)),
            Kind::Release(id) => Open::Releases(Releases::begin(item, id)),
            Kind::Other => Open::Alone(item),
        }
    }

    fn close(self, packed: &mut Vec<proto::StreamItem>) {
        match self {
            Open::Nothing => {}
            Open::Alone(item) => packed.push(item),
            Open::Specs(specs) => packed.push(specs.close()),
            Open::Done(done) => packed.push(done.close()),
            Open::Releases(releases) => packed.push(releases.close()),
        }
    }
}

struct Specs {
    first: proto::StreamItem,
    run: RunId,
    job: u64,
    from: u16,
    count: u16,
    digests: Vec<u8>,
    ends: Vec<u8>,
    specs: Vec<u8>,
    plain: bool,
}

impl Specs {
    fn begin(first: proto::StreamItem, id: TaskId) -> Self {
        let job = spec_of(&first).map_or(0, |spec| spec.job);
        let (digests, ends, specs) = (Vec::new(), Vec::new(), Vec::new());
        Specs { first, run: id.run, job, from: id.place, count: 1, digests, ends, specs, plain: true }
    }

    fn takes(&self, item: &proto::StreamItem, id: TaskId) -> bool {
        id.run == self.run
            && id.place == self.from + self.count
            && spec_of(item).is_some_and(|spec| spec.job == self.job)
    }

    fn add(&mut self, item: proto::StreamItem) {
        if self.count == 1 {
            let first = std::mem::take(&mut self.first);
            self.append(first);
        }
        self.append(item);
        self.count += 1;
    }

    fn append(&mut self, item: proto::StreamItem) {
        let Some(Item::Submit(spec)) = item.item else { return };
        self.digests.put_u64_le(spec.digest);
        self.plain &= is_plain(&spec);
        spec.encode(&mut self.specs).expect("a Vec grows");
        self.ends.put_u32_le(self.specs.len() as u32);
    }

    fn close(self) -> proto::StreamItem {
        if self.count == 1 {
            return self.first;
        }
        let run = proto::RunSpecs {
            run: Bytes::copy_from_slice(&self.run.0.to_be_bytes()),
            job: self.job,
            first: self.from.into(),
            digests: self.digests.into(),
            ends: self.ends.into(),
            specs: self.specs.into(),
            plain: self.plain,
        };
        proto::StreamItem { item: Some(Item::Run(run)) }
    }
}

fn spec_of(item: &proto::StreamItem) -> Option<&proto::TaskSpec> {
    match &item.item {
        Some(Item::Submit(spec)) => Some(spec),
        _ => None,
    }
}

fn done_of(item: &proto::StreamItem) -> Option<&proto::Done> {
    match &item.item {
        Some(Item::Done(done)) => Some(done),
        _ => None,
    }
}

struct Dones {
    first: proto::StreamItem,
    run: RunId,
    last: u16,
    places: Places,
    outputs: Vec<u8>,
}

impl Dones {
    fn begin(first: proto::StreamItem, id: TaskId) -> Self {
        let mut places = Places::default();
        places.insert(id.place);
        Dones { first, run: id.run, last: id.place, places, outputs: Vec::new() }
    }

    /// Only in ascending order: so places say which sequence number is whose.
    fn takes(&self, item: &proto::StreamItem, id: TaskId) -> bool {
        let alike = |a: &proto::Done, b: &proto::Done| (a.executor, &a.holders) == (b.executor, &b.holders);
        id.run == self.run
            && id.place > self.last
            && done_of(&self.first).zip(done_of(item)).is_some_and(|(a, b)| alike(a, b))
    }

    fn add(&mut self, item: proto::StreamItem, id: TaskId) {
        if self.outputs.is_empty() {
            let first = done_of(&self.first).cloned().unwrap_or_default();
            self.append(&first);
        }
        self.append(done_of(&item).unwrap_or(&proto::Done::default()));
        self.places.insert(id.place);
        self.last = id.place;
    }

    fn append(&mut self, done: &proto::Done) {
        for output in &done.outputs {
            self.outputs.put_u32_le(output.crc);
            self.outputs.put_u64_le(output.size);
        }
    }

    fn close(self) -> proto::StreamItem {
        let Some(first) = done_of(&self.first).filter(|_| !self.outputs.is_empty()) else {
            return self.first;
        };
        debug_assert_eq!(self.outputs.len(), self.places.len() * OUTPUT_LEN, "one value each");
        let done = proto::RunDone {
            run: Bytes::copy_from_slice(&self.run.0.to_be_bytes()),
            places: Bytes::copy_from_slice(&self.places.to_bytes()),
            executor: first.executor,
            outputs: self.outputs.into(),
            holders: first.holders.clone(),
        };
        proto::StreamItem { item: Some(Item::RunDone(done)) }
    }
}

/// Releases of first return values of one run.
struct Releases {
    first: proto::StreamItem,
    run: RunId,
    last: u16,
    places: Places,
}

impl Releases {
    fn begin(first: proto::StreamItem, id: TaskId) -> Self {
        let mut places = Places::default();
        places.insert(id.place);
        Releases { first, run: id.run, last: id.place, places }
    }

    /// Only in ascending order, as for ends.
    fn takes(&self, id: TaskId) -> bool {
        id.run == self.run && id.place > self.last
    }

    fn add(&mut self, id: TaskId) {
        self.places.insert(id.place);
        self.last = id.place;
    }

    fn close(self) -> proto::StreamItem {
        if self.places.len() == 1 {
            return self.first;
        }
        let run = Bytes::copy_from_slice(&self.run.0.to_be_bytes());
        let places = Bytes::copy_from_slice(&self.places.to_bytes());
        proto::StreamItem { item: Some(Item::RunRelease(proto::RunRelease { run, places })) }
    }
}
