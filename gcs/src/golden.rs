//! The files of `tests/golden`: what this program writes, and what it must be able to read for ever.
//!
//! A level of formats that changes one of them adds a file; none is ever changed or removed. Segments
//! of the log are in `log::tests`.

mod counted;

use crate::backup::archive::{self, ArchiveHead, Piece};
use crate::cold;
use crate::core::ShardState;
use crate::core::groups::Stage;
use crate::identity::Identity;
use crate::log::record::{pack, unpack};
use crate::raft::network::SnapshotPart;
use crate::raft::types::{Entry, LogId, Proposal, SnapshotMeta, StoredMembership, Types, Vote};
use crate::snapshot::{self, Parcel};
use bytes::Bytes;
use mobula_base::disk::Disk;
use mobula_base::sim_disk::SimDisk;
use mobula_base::{JobId, TaskId};
use mobula_proto as proto;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::{BasicNode, EntryPayload, Membership};
use prost::Message;
use proto::stream_item::Item;
use proto::{GroupStrategy, call, command, group_command, head_command, slot_command};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Memory for hot runs that makes most of them go cold, in bytes.
const HOT: usize = 4000;

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

fn committed(name: &str) -> Bytes {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}")).into()
}

fn task(n: u64) -> TaskId {
    TaskId::new(JobId(1), TaskId::root(JobId(1)), 0, n)
}

fn call_of(session: u64, seq: u64, op: call::Op) -> command::Op {
    command::Op::Call(proto::Call { session, seq, op: Some(op) })
}

fn put(seq: u64, key: &'static str, value: &'static str) -> command::Op {
    let (key, value) = (key.into(), value.into());
    call_of(1, seq, call::Op::KvPut(proto::KvPut { key, value, ..Default::default() }))
}

fn spec_of(n: u64) -> proto::TaskSpec {
    proto::TaskSpec {
        id: proto::task_bytes(task(n)),
        job: 1,
        function: 5,
        digest: 50 + n,
        max_retries: 3,
        args: vec![proto::Arg { arg: Some(proto::arg::Arg::Value(Bytes::from_static(b"argument"))) }],
        ..Default::default()
    }
}

fn done_of(n: u64, executor: u64, crc: u32) -> proto::Done {
    proto::Done {
        task: proto::task_bytes(task(n)),
        attempt: 1,
        executor,
        outputs: vec![proto::Output { crc, size: 8 }],
        ..Default::default()
    }
}

/// A command of every kind that leaves something behind.
fn commands() -> Vec<command::Op> {
    let join =
        |address: &str| proto::NodeJoin { address: address.into(), cpu_milli: 4000, ..Default::default() };
    let small = proto::SmallPut {
        object: proto::object_bytes(task(0).output(mobula_base::ids::FIRST_PUT_SLOT)),
        job: 1,
        value: "small".into(),
        ..Default::default()
    };
    let entry =
        |head, address: &str| proto::HeadEntry { head, address: address.into(), ..Default::default() };
    let plan = proto::StartHeadPlan {
        request: 11,
        founders: vec![entry(1, "h1:1"), entry(2, "h2:1"), entry(3, "h3:1")],
        add: "h4:1".into(),
        remove: 2,
    };
    let start = proto::JobStart { name: "job".into(), incarnation: 1, job: 1, ..Default::default() };
    let mut ops = vec![
        command::Op::Init(proto::InitCluster { cluster: 77, shards: 1, slots: 4096 }),
        call_of(0, 0, call::Op::Open(proto::OpenSession {})),
        call_of(1, 1, call::Op::NodeJoin(join("n1:1"))),
        call_of(1, 2, call::Op::NodeJoin(join("n2:1"))),
        call_of(1, 3, call::Op::JobStart(start)),
        put(4, "key", "first"),
        put(5, "gone", "x"),
        put(6, "key", "second"),
        call_of(1, 7, call::Op::KvDelete(proto::KvDelete { key: "gone".into(), ..Default::default() })),
        command::Op::Heads(proto::HeadCommand { op: Some(head_command::Op::Start(plan)) }),
    ];
    let mut items = Vec::new();
    for n in 0..520 {
        items.push(Item::Submit(spec_of(n)));
        items.push(Item::Done(done_of(n, 1, 9)));
    }
    items.push(Item::Put(small));
    let mut first_seq = 1;
    for some in items.chunks(1024) {
        let items = some.iter().map(|item| proto::StreamItem { item: Some(item.clone()) }).collect();
        ops.push(command::Op::Stream(proto::StreamBatch { incarnation: 1, first_seq, items }));
        first_seq += some.len() as u64;
    }
    let evidence = "silent".to_owned();
    ops.push(command::Op::DeclareDead(proto::DeclareDead { incarnation: 2, evidence, silent_ms: 1500 }));
    ops.push(command::Op::Fence(proto::Fence { incarnation: 3 }));
    ops.push(command::Op::Forget(proto::ForgetJob { job: 6 }));
    ops
}

/// Those commands, each with its length before it.
pub(crate) fn encoded_commands() -> Vec<u8> {
    let mut out = Vec::new();
    for op in commands() {
        proto::Command::from(op).encode_length_delimited(&mut out).expect("a Vec grows");
    }
    out
}

/// Those of them that are small, all together and each for itself, and streams of a few items.
pub(crate) fn small_commands() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut each = Vec::new();
    for op in commands() {
        let command = match op {
            command::Op::Stream(batch) => {
                let items = batch.items.into_iter().take(8).collect();
                proto::Command::from(command::Op::Stream(proto::StreamBatch { first_seq: 1, items, ..batch }))
            }
            other => proto::Command::from(other),
        };
        let bytes = command.encode_length_delimited_to_vec();
        all.extend_from_slice(&bytes);
        each.push(bytes);
    }
    each.push(all);
    each
}

/// What the cluster of the golden files had come to, and the disk with its cold files.
fn state() -> (ShardState, Arc<SimDisk>) {
    let disk = Arc::new(SimDisk::new(1));
    let mut state = ShardState::new(0, cold::open_one(disk.clone(), 0).expect("memory"));
    state.set_hot_limit(HOT);
    for (index, op) in (1u64..).zip(commands()) {
        state.apply(index, &proto::Command::from(op));
    }
    assert!(state.broken().is_none());
    (state, disk)
}

/// Shard 0 of two: slots have left it, and others are on their way in.
fn moved() -> ShardState {
    let mut state = ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(4)), 0).expect("memory"));
    let rows = |first, last| vec![proto::SlotRow { first, last, shard: 0 }];
    let start = |request, from, to, slots| {
        slot_command::Op::Start(proto::StartSlotPlan { request, from, to, slots, ..Default::default() })
    };
    let moves = [
        start(1, 0, 1, rows(500, 511)),
        slot_command::Op::Release(proto::ReleaseSlots {
            epoch: 2,
            to: 1,
            slots: rows(500, 511),
            owned: rows(0, 511),
        }),
        slot_command::Op::Switch(proto::SwitchSlots { epoch: 2 }),
        slot_command::Op::Forget(proto::ForgetSlots { epoch: 2, last: true, ..Default::default() }),
        slot_command::Op::End(proto::EndSlotPlan { epoch: 2 }),
        start(2, 1, 0, rows(600, 610)),
        slot_command::Op::Await(proto::AwaitSlots {
            epoch: 3,
            from: 1,
            slots: rows(600, 610),
            owned: vec![],
        }),
        slot_command::Op::Content(proto::SlotContent {
            epoch: 3,
            next: Some(proto::SlotCursor { table: 1, key: "k".into() }),
            keys: vec![proto::MovedKey { key: "k".into(), value: "v".into(), revision: 9 }],
            ..Default::default()
        }),
    ];
    let raise = proto::RaiseLevel { level: 2, program: "0.2".into(), heads: 0 };
    let first = [
        command::Op::Init(proto::InitCluster { cluster: 77, shards: 2, slots: 1024 }),
        command::Op::Raise(raise),
    ];
    let moves = moves.map(|op| command::Op::Slots(proto::SlotCommand { op: Some(op) }));
    for (index, op) in (1u64..).zip(first.into_iter().chain(moves)) {
        state.apply(index, &proto::Command::from(op));
    }
    state
}

/// Shard 0 with placement groups: one that is placed, one whose nodes reserve, one that cannot be placed.
fn grouped() -> ShardState {
    let mut state = ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(8)), 0).expect("memory"));
    let join =
        |address: &str| proto::NodeJoin { address: address.into(), cpu_milli: 4000, ..Default::default() };
    let start = proto::JobStart { name: "job".into(), incarnation: 1, job: 1, ..Default::default() };
    let bundle = |cpu_milli| {
        let resources = vec![proto::NamedResource { name: "tape".into(), milli: 0 }];
        proto::Bundle { cpu_milli, resources }
    };
    let create = |group, bundles: &[u32]| {
        let (strategy, bundles) = (GroupStrategy::GroupPack as i32, bundles.iter().map(|cpus| bundle(*cpus)));
        call::Op::GroupCreate(proto::GroupCreate {
            group,
            job: 1,
            name: "name".into(),
            strategy,
            bundles: bundles.collect(),
        })
    };
    let assign = |group, places: &[(u32, u64)]| {
        let places = places.iter().map(|(bundle, node)| proto::BundlePlace { bundle: *bundle, node: *node });
        group_command::Op::Assign(proto::AssignGroup { group, after: 0, places: places.collect() })
    };
    let raise = proto::RaiseLevel { level: 4, program: "0.4".into(), heads: 0 };
    let why = "bundle 0 asks for cpu 64, and no node offers that".to_owned();
    let calls = [
        call::Op::Open(proto::OpenSession {}),
        call::Op::NodeJoin(join("n1:1")),
        call::Op::NodeJoin(join("n2:1")),
        call::Op::JobStart(start),
        create(10, &[1000, 2000]),
        create(11, &[3000]),
        create(12, &[64_000]),
        create(13, &[1000]),
        call::Op::GroupRemove(proto::GroupRemove { group: 13, job: 1 }),
    ];
    let steps = [
        assign(10, &[(0, 1), (1, 1)]),
        group_command::Op::Commit(proto::CommitGroup { group: 10, attempt: 1 }),
        assign(11, &[(0, 2)]),
        group_command::Op::Note(proto::NoteGroup { group: 12, since: 9, why }),
    ];
    let first = [
        command::Op::Init(proto::InitCluster { cluster: 77, shards: 1, slots: 1024 }),
        command::Op::Raise(raise),
    ];
    let calls = (0..).zip(calls).map(|(seq, op)| call_of(u64::from(seq > 0), seq, op));
    let steps = steps.map(|op| command::Op::Groups(proto::GroupCommand { op: Some(op) }));
    for (index, op) in (1u64..).zip(first.into_iter().chain(calls).chain(steps)) {
        state.apply(index, &proto::Command::from(op));
    }
    state
}

fn log_id(index: u64) -> LogId {
    LogId { leader_id: *Vote::new(3, 1).leader_id(), index }
}

fn members() -> Membership<u64, BasicNode> {
    let nodes: BTreeMap<u64, BasicNode> =
        (1..4).map(|head| (head, BasicNode::new(format!("h{head}:1")))).collect();
    Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 3])], nodes)
        .expect("names all its voters")
}

fn meta() -> SnapshotMeta {
    let last_membership = StoredMembership::new(Some(log_id(2)), members());
    SnapshotMeta { last_log_id: Some(log_id(40)), last_membership }
}

fn identity() -> Identity {
    let founders = vec!["h1:1".into(), "h2:1".into(), "h3:1".into()];
    Identity {
        format: 1,
        cluster: 77,
        head: 2,
        shards: 1,
        founders,
        level: 1,
        program: "0.1.0".into(),
        begun: false,
    }
}

fn entries() -> Vec<Entry> {
    let payload = [
        EntryPayload::Blank,
        EntryPayload::Normal(Proposal(Bytes::from_static(b"command"))),
        EntryPayload::Membership(members()),
    ];
    let entry = |(index, payload)| Entry { log_id: log_id(index), payload };
    (5..).zip(payload).map(entry).collect()
}

fn append() -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: Vote::new_committed(3, 1),
        prev_log_id: Some(log_id(4)),
        entries: entries(),
        leader_commit: Some(log_id(3)),
    }
}

/// One message of each kind that heads send each other, each with its length before it.
fn wire(cold: &cold::Manifest) -> Vec<u8> {
    let part = SnapshotPart {
        vote: Vote::new_committed(3, 1),
        meta: meta(),
        cold: cold.clone(),
        file: 1,
        offset: 4096,
        ends_file: true,
        data: Bytes::from_static(b"bytes of a file"),
    };
    let vote = VoteRequest::<Types>::new(Vote::new(4, 2), Some(log_id(7)));
    let mut out = Vec::new();
    for payload in [pack(&append()), pack(&vote), pack(&part)] {
        let message = proto::RaftMessage { cluster: 77, payload, to: 2, level: 1, ..Default::default() };
        message.encode_length_delimited(&mut out).expect("a Vec grows");
    }
    out
}

fn backup(parcel: &Parcel, file: &[u8]) -> Vec<u8> {
    let head = ArchiveHead { format: archive::FORMAT, cluster: 77, shards: 1, unix_ms: 1 };
    let mut writer = archive::Writer::new(Vec::new(), &head).expect("a Vec grows");
    let head = proto::DumpHead {
        index: 40,
        term: 3,
        dump_bytes: parcel.dump.len() as u64,
        cold: parcel.cold.encode_to_vec().into(),
        cluster: 77,
        tasks: 520,
        keys: 1,
        ..Default::default()
    };
    writer.shard(&head).expect("a Vec grows");
    writer.data(&parcel.dump).expect("a Vec grows");
    writer.data(file).expect("a Vec grows");
    writer.finish().expect("a Vec grows")
}

/// Everything that this program writes at levels 1 to 4, by the name of its golden file.
fn written() -> BTreeMap<&'static str, Vec<u8>> {
    let (state, disk) = state();
    let cold = state.manifest();
    assert_eq!(cold.files.len(), 1, "small enough for one");
    let file = disk.read(&cold::path(0, cold.files[0].number)).expect("written");
    let file = file[..cold.files[0].len as usize].to_vec();
    let parcel = Parcel { dump: state.snapshot(1).into(), cold };
    snapshot::prepare(&*disk).expect("memory");
    snapshot::save(&*disk, 0, &meta(), &parcel).expect("memory");
    identity().save(&*disk).expect("memory");
    BTreeMap::from([
        ("identity-v1", disk.read("identity").expect("written")),
        ("snapshot-v2.snap", disk.read(&format!("{}/0-{:020}.snap", snapshot::DIR, 40)).expect("written")),
        ("dump-v3", parcel.dump.to_vec()),
        ("backup-v1", backup(&parcel, &file)),
        ("wire-v1", wire(&parcel.cold)),
        ("cold-v1.runs", file),
        ("dump-v4", moved().snapshot(2)),
        ("dump-v5", counted::counted().snapshot(3)),
        ("dump-v6", grouped().snapshot(4)),
    ])
}

#[test]
fn this_program_writes_the_golden_files() {
    for (name, bytes) in written() {
        assert!(committed(name) == bytes, "{name}: a change of it takes a new level (see `level`)");
    }
}

/// Writes them, when a level is added.
#[test]
#[ignore = "writes files of the source tree"]
fn write_golden_files() {
    for (name, bytes) in written() {
        std::fs::write(path(name), bytes).expect("writable");
    }
}

/// The disk of a head that has nothing but these files.
fn disk_of(files: &[(String, &str)]) -> Arc<SimDisk> {
    let disk = Arc::new(SimDisk::new(2));
    for dir in [snapshot::DIR, cold::DIR] {
        disk.create_dir(dir).expect("memory");
    }
    for (at, name) in files {
        disk.open(at, true).expect("memory").write_at(0, &committed(name)).expect("memory");
    }
    disk
}

fn check(state: &ShardState) {
    let (expected, _) = self::state();
    assert_eq!(state.digest(), expected.digest());
    assert_eq!(state.cluster.id, 77);
    let key = state.kv.iter().map(|(key, entry)| (key.clone(), entry.value.clone(), entry.revision));
    assert_eq!(key.collect::<Vec<_>>(), [("key".into(), "second".into(), 3)]);
    for n in [0, 300, 519] {
        let view = state.view_of(task(n), true).expect("readable");
        assert_eq!((view.state(), view.executor), (proto::TaskState::TaskDone, 1));
        assert_eq!(view.spec.expect("asked for").digest, 50 + n);
    }
}

#[test]
fn golden_identities_open() {
    let disk = disk_of(&[("identity".into(), "identity-v1")]);
    assert_eq!(Identity::load(&*disk).expect("readable"), Some(identity()));
}

#[test]
fn golden_snapshots_with_their_cold_files_open() {
    let (number, snap) = (self::state().0.manifest().files[0].number, format!("snapshots/0-{:020}.snap", 40));
    let disk = disk_of(&[(cold::path(0, number), "cold-v1.runs"), (snap, "snapshot-v2.snap")]);
    let (found, parcel) = snapshot::load_newest(&*disk, 0).expect("readable").expect("there");
    assert_eq!(found, meta());
    assert_eq!(parcel.dump, committed("dump-v3"));
    snapshot::verify(&*disk, 0).expect("whole");
    let mut state = ShardState::new(0, cold::open_one(disk, 0).expect("memory"));
    state.restore(parcel.dump, &parcel.cold).expect("readable");
    check(&state);
}

/// Written before 0.1.0, when there was no table of events.
#[test]
fn a_dump_from_before_there_were_events_is_read() {
    let cold = self::state().0.manifest();
    let disk = disk_of(&[(cold::path(0, cold.files[0].number), "cold-v1.runs")]);
    let mut state = ShardState::new(0, cold::open_one(disk, 0).expect("memory"));
    state.restore(committed("dump-v3-no-events"), &cold).expect("readable");
    assert_eq!(state.cluster.events.last(), 0);
    let (mut expected, _) = self::state();
    expected.cluster.events = crate::core::events::Events::default();
    assert_eq!(state.digest(), expected.digest());
    let kind = proto::EventKind::EventElection as i32;
    let event = proto::Event { kind, shard: 1, term: 1, ..Default::default() };
    state.apply(41, &proto::Command::from(command::Op::Event(event)));
    assert_eq!(state.cluster.events.last(), 1);
}

#[test]
fn a_golden_dump_of_slots_on_the_move_is_read() {
    let mut state = ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(5)), 0).expect("memory"));
    state.restore(committed("dump-v4"), &cold::Manifest::default()).expect("readable");
    assert_eq!(state.digest(), moved().digest());
    assert_eq!((state.slots.epoch(), state.slots.moved(505), state.slots.moved(499)), (3, Some(2), None));
    let coming = state.slots.coming().expect("the second move is under way");
    assert_eq!((coming.slots.to_string().as_str(), &coming.cursor.key[..]), ("600-610", &b"k"[..]));
    let table = &state.cluster.slots_table;
    assert_eq!((table.epoch(), table.plan().map(|plan| plan.epoch)), (2, Some(3)));
    // One from before slots moved says nothing of them, and that is the first map.
    let cold = self::state().0.manifest();
    let disk = disk_of(&[(cold::path(0, cold.files[0].number), "cold-v1.runs")]);
    let mut older = ShardState::new(0, cold::open_one(disk, 0).expect("memory"));
    older.restore(committed("dump-v3"), &cold).expect("readable");
    let table = &older.cluster.slots_table;
    assert_eq!(table.map(4), mobula_base::SlotMap::even(4));
    assert_eq!((older.slots.epoch(), older.slots.moved(1023)), (0, None));
}

#[test]
fn a_golden_dump_of_placement_groups_is_read() {
    let mut state = ShardState::new(0, cold::open_one(Arc::new(SimDisk::new(9)), 0).expect("memory"));
    state.restore(committed("dump-v6"), &cold::Manifest::default()).expect("readable");
    assert_eq!(state.digest(), grouped().digest());
    let groups = state.cluster.groups.all();
    let stages: Vec<(u64, Stage)> = groups.iter().map(|(id, group)| (*id, group.stage())).collect();
    assert_eq!(stages, [(10, Stage::Placed), (11, Stage::Reserves(2)), (12, Stage::Waits)]);
    assert_eq!(groups[&12].why, "bundle 0 asks for cpu 64, and no node offers that");
    assert_eq!(state.cluster.groups.assigned(1).cpu_milli, 3000);
    // It goes on where it was, also with the numbers of attempts.
    for (index, id) in [(50, 11), (51, 12)] {
        let op = group_command::Op::GiveUp(proto::GiveUpGroup { group: id, attempt: 2 });
        state.apply(index, &proto::Command::from(command::Op::Groups(proto::GroupCommand { op: Some(op) })));
    }
    let places = vec![proto::BundlePlace { bundle: 0, node: 2 }];
    let again = group_command::Op::Assign(proto::AssignGroup { group: 11, after: 2, places });
    state.apply(52, &proto::Command::from(command::Op::Groups(proto::GroupCommand { op: Some(again) })));
    assert_eq!(state.cluster.groups.all()[&11].stage(), Stage::Reserves(3));
}

#[test]
fn golden_backups_are_read() {
    let backup = committed("backup-v1");
    let mut data = Vec::new();
    let read = archive::read(&backup[..], "golden", |piece| {
        if let Piece::Data(bytes) = piece {
            data.extend_from_slice(bytes);
        }
        Ok(())
    });
    assert_eq!(read.expect("whole").head.cluster, 77);
    assert_eq!(data, [committed("dump-v3"), committed("cold-v1.runs")].concat());
    let disk = Arc::new(SimDisk::new(3));
    crate::backup::seed::restore(disk.clone(), 78, "new:1", &backup[..], "golden").expect("restored");
    let identity = Identity::load(&*disk).expect("readable").expect("written");
    assert_eq!((identity.cluster, identity.level), (78, 1));
}

#[test]
fn golden_messages_between_heads_are_understood() {
    let mut bytes = committed("wire-v1");
    let mut next = || proto::RaftMessage::decode_length_delimited(&mut bytes).expect("whole");
    let (first, vote, part) = (next(), next(), next());
    assert_eq!((first.cluster, first.to, first.level), (77, 2, 1));
    let first: AppendEntriesRequest<Types> = unpack(&first.payload).expect("readable");
    assert_eq!(
        (first.vote, first.prev_log_id, first.leader_commit),
        (append().vote, Some(log_id(4)), Some(log_id(3)))
    );
    assert_eq!(first.entries, entries());
    let vote: VoteRequest<Types> = unpack(&vote.payload).expect("readable");
    assert_eq!((vote.vote, vote.last_log_id), (Vote::new(4, 2), Some(log_id(7))));
    let part: SnapshotPart = unpack(&part.payload).expect("readable");
    assert_eq!((part.meta, part.offset, part.data), (meta(), 4096, Bytes::from_static(b"bytes of a file")));
}

#[test]
fn a_dump_of_a_level_that_is_not_read_is_refused_by_name() {
    let (mut state, _) = state();
    let newer = state.snapshot(5);
    let cold = state.manifest();
    let error = state.restore(newer.into(), &cold).expect_err("this program reads level 4").to_string();
    assert!(error.contains("writes format 5, this program reads up to 4: install version"), "{error}");
}
