//! What a node tells Prometheus: counts of one moment, made when somebody asks.
//!
//! Labels name states, classes of resources and methods, never single objects.

use crate::input::Counts;
use mobula_gcs::server::resident_bytes;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct In {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Of {
    class: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    method: String,
}

/// Everything, as OpenMetrics text. `retries` are those of the client of the control store.
///
/// # Errors
/// Never in practice: the text goes to memory.
pub fn exposition(counts: &Counts, retries: &BTreeMap<&'static str, u64>) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("mobula");
    scheduling(&mut registry, counts);
    objects(&mut registry, counts);
    let asked: Family<Method, Counter> = Family::default();
    for (method, again) in retries {
        asked.get_or_create(&Method { method: title(method) }).inc_by(*again);
    }
    registry.register("rpc_retries", "Calls to the control store that were repeated, by method", asked);
    gauge(&mut registry, "resident_bytes", "Resident memory of this process", resident_bytes());
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn scheduling(registry: &mut Registry, counts: &Counts) {
    let core = &counts.core;
    states(registry, "tasks", "Tasks that this node keeps", &core.kept);
    states(registry, "task_attempts", "Attempts of tasks that run on this node", &core.runs);
    let queues: Family<Of, Gauge> = Family::default();
    for (class, waiting) in &core.queues {
        queues.get_or_create(&Of { class: class.clone() }).set(*waiting as i64);
    }
    registry.register(
        "scheduler_queue",
        "Tasks that wait for a node, and attempts that wait for a worker, by demand",
        queues,
    );
    let help = "Tasks that no known node can run; they fail if none joins";
    gauge(registry, "infeasible_tasks", help, core.infeasible);
    states(registry, "workers", "Worker processes", &core.workers);
    let ended: Family<In, Counter> = Family::default();
    for (state, count) in &core.ended_for_memory {
        ended.get_or_create(&In { state }).inc_by(*count);
    }
    let help = "Workers that were killed for the memory they had: of their tasks' limit, or of the node";
    registry.register("workers_ended_for_memory", help, ended);
    gauge(registry, "drivers", "Drivers attached to this node", counts.drivers);
    let help = "Lineage records that their shards have not acknowledged";
    gauge(registry, "lineage_unacknowledged", help, core.unacknowledged);
    let (free, all) = core.cpu_milli;
    cpus(registry, "node_cpus_free", "CPUs that no task holds", free);
    cpus(registry, "node_cpus", "CPUs that this node offers", all);
}

fn objects(registry: &mut Registry, counts: &Counts) {
    let (used, capacity) = counts.store_bytes;
    gauge(registry, "object_store_used_bytes", "Shared memory that holds objects", used);
    gauge(registry, "object_store_capacity_bytes", "Shared memory for objects", capacity);
    let spilled = counts.spilled;
    gauge(registry, "objects_spilled", "Objects of this node that lie in files", spilled.files);
    gauge(registry, "object_store_spilled_bytes", "Bytes of objects that lie in files", spilled.bytes);
    let help = "Bytes that these take in their files: fewer, where they were packed";
    gauge(registry, "object_store_spill_file_bytes", help, spilled.stored_bytes);
    let failed: Counter = Counter::default();
    failed.inc_by(spilled.failures);
    registry.register("object_spill_failures", "Files of objects that the disk did not take", failed);
    let help = "Producers, readers and transfers that wait for room in shared memory";
    gauge(registry, "object_store_waiting", help, counts.waiting_for_room);
    let (sealed, creating, leaving) = counts.objects;
    let by_state = [("sealed", sealed), ("creating", creating), ("leaving", leaving)];
    states(registry, "objects", "Objects in the shared memory of this node", &by_state);
    let (known, idle) = counts.core.objects;
    let help = "Objects that this node knows of, wherever they are, made or still to be made";
    gauge(registry, "objects_known", help, known);
    let help =
        "Copies of this node that nobody here has a use for; their homes are asked whether they may go";
    gauge(registry, "objects_idle", help, idle);
    let (all, short, awaited) = counts.core.copies;
    let help = "Objects put with a number of copies, of which this node sees to the copies";
    gauge(registry, "objects_replicated", help, all);
    let help =
        "Of these, those for which there are too few nodes: they have as many copies as there are nodes";
    gauge(registry, "objects_short_of_copies", help, short);
    let help = "Copies that shall be on this node and are not yet";
    gauge(registry, "object_copies_awaited", help, awaited);
    let (queued, under_way) = counts.core.fetches;
    let by_state = [("queued", queued), ("under_way", under_way)];
    states(registry, "object_transfers", "Objects to be copied here from other nodes", &by_state);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(value as i64);
    registry.register(name, help, gauge);
}

fn cpus(registry: &mut Registry, name: &str, help: &str, milli: u64) {
    let gauge: Gauge<f64, AtomicU64> = Gauge::default();
    gauge.set(milli as f64 / 1000.0);
    registry.register(name, help, gauge);
}

fn states(registry: &mut Registry, name: &str, help: &str, counts: &[(&'static str, u64)]) {
    let family: Family<In, Gauge> = Family::default();
    for (state, count) in counts {
        family.get_or_create(&In { state }).set(*count as i64);
    }
    registry.register(name, help, family);
}

/// A method's name as heads have it in their metrics: `kv_watch` is `ControlStore/KvWatch`.
fn title(method: &str) -> String {
    let word = |word: &str| word.split_at_checked(1).map(|(first, rest)| first.to_ascii_uppercase() + rest);
    "ControlStore/".to_owned() + &method.split('_').filter_map(word).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_called_as_on_heads() {
        assert_eq!(["propose", "kv_watch"].map(title), ["ControlStore/Propose", "ControlStore/KvWatch"]);
    }
}
