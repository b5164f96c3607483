//! What a node says of itself to those who watch it: its metrics, and what they say is left.

use std::collections::BTreeMap;

/// Metrics by name, summed over their labels.
pub type Metrics = BTreeMap<String, f64>;

/// Reads an answer to `GET /metrics`.
///
/// # Errors
/// It is another answer, of which this is the first line.
pub fn answered(answer: &str) -> Result<Metrics, String> {
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(answer.lines().next().unwrap_or("nothing").to_owned());
    }
    Ok(read(answer))
}

fn read(answer: &str) -> Metrics {
    let mut metrics = Metrics::new();
    for line in answer.lines().filter(|line| line.starts_with("mobula_")) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or(name);
        if let Ok(value) = value.parse::<f64>() {
            *metrics.entry(name.to_owned()).or_default() += value;
        }
    }
    metrics
}

/// One of them.
pub fn of(metrics: &Metrics, name: &str) -> f64 {
    // A name that does not exist must not pass for nothing.
    metrics.get(&format!("mobula_{name}")).copied().unwrap_or(f64::NAN)
}

/// What is still kept, runs or waits, if anything.
pub fn at_work(metrics: &Metrics) -> Option<String> {
    let cpus = of(metrics, "node_cpus") - of(metrics, "node_cpus_free");
    let counts = [
        ("tasks kept", of(metrics, "tasks")),
        ("attempts", of(metrics, "task_attempts")),
        ("records without an answer", of(metrics, "lineage_unacknowledged")),
        ("CPUs in use", cpus),
    ];
    busy(&counts)
}

/// All that is not nothing.
pub fn all(metrics: &Metrics) -> String {
    let some = metrics.iter().filter(|(name, value)| **value != 0.0 && !name.contains("bytes"));
    let some: Vec<String> =
        some.map(|(name, value)| format!("{} {value}", name.trim_start_matches("mobula_"))).collect();
    some.join(", ")
}

/// Objects that are still known, if any.
pub fn objects(metrics: &Metrics) -> Option<String> {
    busy(&[("objects known", of(metrics, "objects_known"))])
}

/// Memory that still holds objects, if any.
pub fn memory(metrics: &Metrics) -> Option<String> {
    busy(&[("bytes of objects", of(metrics, "object_store_used_bytes"))])
}

fn busy(counts: &[(&str, f64)]) -> Option<String> {
    let some = counts.iter().filter(|(_, count)| *count != 0.0);
    let some: Vec<String> = some.map(|(what, count)| format!("{count} {what}")).collect();
    (!some.is_empty()).then(|| some.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_their_labels_and_a_missing_one_is_no_zero() {
        let text = "HTTP/1.1 200 OK\r\n\r\n# TYPE x gauge\nmobula_tasks{state=\"a\"} 1\nmobula_tasks{state=\"b\"} 2\n\
                    mobula_node_cpus 2.0\nmobula_node_cpus_free 2.0\nmobula_task_attempts 0\n\
                    mobula_lineage_unacknowledged 0\n";
        let metrics = read(text);
        assert_eq!(at_work(&metrics).as_deref(), Some("3 tasks kept"));
        assert!(objects(&metrics).is_some());
    }
}
