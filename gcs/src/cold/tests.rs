use super::*;
use mobula_base::sim_disk::SimDisk;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn cold_run(run: u128, job: u64, byte: u8, len: usize) -> ColdRun {
    ColdRun { run: RunId(run), job, bytes: vec![byte; len].into() }
}

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<(u128, usize)>),
    Take(u128),
    Remove(u128),
    Forget(u64),
    Tidy,
    Reopen,
}

/// A job is part of a run's id.
fn job_of(run: u128) -> u64 {
    (run % 3) as u64 + 1
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec((0u128..20, 1usize..3000), 1..6).prop_map(Step::Put),
        3 => (0u128..20).prop_map(Step::Take),
        2 => (0u128..20).prop_map(Step::Remove),
        1 => (1u64..4).prop_map(Step::Forget),
        2 => Just(Step::Tidy),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// What comes out is what went in last, over restarts, copying together, and forgetting.
    #[test]
    fn it_is_a_map(steps in proptest::collection::vec(any_step(), 1..60)) {
        let disk = Arc::new(SimDisk::new(1));
        let mut store = open_one(disk.clone(), 4).expect("memory");
        store.set_file_bytes(5000);
        let mut model: BTreeMap<u128, Bytes> = BTreeMap::new();
        let mut removed = std::collections::BTreeSet::new();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(runs) => {
                    let runs: Vec<ColdRun> = runs.iter().map(|(run, len)| cold_run(*run, job_of(*run), at as u8, *len)).collect();
                    // As the tables do: what is changed was taken before.
                    for run in &runs {
                        store.take(run.run).expect("memory");
                    }
                    model.extend(runs.iter().map(|run| (run.run.0, run.bytes.clone())));
                    removed.retain(|id| !model.contains_key(id));
                    store.put(runs).expect("memory");
                }
                Step::Take(run) => prop_assert_eq!(store.take(RunId(run)).expect("memory"), model.remove(&run)),
                Step::Remove(run) => {
                    prop_assert_eq!(store.take(RunId(run)).expect("memory"), model.remove(&run));
                    store.put(vec![cold_run(run, job_of(run), 0, 0)]).expect("memory");
                    removed.insert(run);
                }
                Step::Forget(job) => {
                    store.forget(job);
                    model.retain(|run, _| job_of(*run) != job);
                }
                Step::Tidy => store.tidy(&[]).expect("memory"),
                Step::Reopen => {
                    // A taken copy is still in its file: tables restore it over the manifest's.
                    let manifest = store.manifest();
                    store.sync(&manifest).expect("memory");
                    // One that was removed is nowhere else, and must not come back.
                    let gone = |run: &u128| !model.contains_key(run) && !removed.contains(run);
                    let taken: Vec<u128> = (0..20).filter(gone).collect();
                    disk.power_cut();
                    store = open_one(disk.clone(), 4).expect("memory");
                    store.set_file_bytes(5000);
                    store.adopt(&manifest).expect("synced before");
                    for run in taken {
                        store.take(RunId(run)).expect("memory");
                    }
                }
            }
            for run in 0..20 {
                prop_assert_eq!(store.get(RunId(run)).expect("memory"), model.get(&run).cloned(), "run {} after step {}", run, at);
            }
        }
        store.tidy(&[]).expect("memory");
        store.tidy(&[]).expect("memory");
        // What says that a run was removed stays, in whatever file it is.
        if model.is_empty() && removed.is_empty() {
            prop_assert!(disk.list(DIR).expect("memory").len() <= 1, "only the open file may stay");
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed_wherever_it_is() {
    let disk = Arc::new(SimDisk::new(1));
    let store = open_one(disk.clone(), 1).expect("memory");
    store.put(vec![cold_run(1, 1, 7, 40), cold_run(2, 1, 8, 40)]).expect("memory");
    let manifest = store.manifest();
    for byte in 0..manifest.files[0].len {
        let file = path(1, manifest.files[0].number);
        disk.flip_bit(&file, byte);
        let again = open_one(disk.clone(), 1).expect("memory");
        let noticed = match again.adopt(&manifest) {
            Err(_) => true,
            Ok(()) => {
                let wrong = |run: u128, byte: u8| !matches!(again.get(RunId(run)), Ok(Some(bytes)) if bytes[..] == [byte; 40]);
                wrong(1, 7) || wrong(2, 8)
            }
        };
        assert!(noticed, "bit of byte {byte}");
        disk.flip_bit(&file, byte);
    }
}

#[test]
fn a_full_disk_keeps_runs_in_memory_until_there_is_room() {
    let disk = Arc::new(SimDisk::new(1));
    let store = open_one(disk.clone(), 1).expect("memory");
    disk.set_full(true);
    store.put(vec![cold_run(1, 1, 7, 40)]).expect("waits");
    store.put(vec![cold_run(2, 1, 8, 40)]).expect("waits");
    assert_eq!(store.get(RunId(1)).expect("memory"), Some(vec![7; 40].into()));
    let full = store.sync(&store.manifest()).expect_err("there is no room");
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    disk.set_full(false);
    store.sync(&store.manifest()).expect("there is room");
    disk.power_cut();
    let again = open_one(disk, 1).expect("memory");
    again.adopt(&store.manifest()).expect("all is there");
    assert_eq!(again.get(RunId(2)).expect("memory"), Some(vec![8; 40].into()));
}
