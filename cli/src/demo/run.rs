//! One run of the demo, from the first process to the verdict.

use super::answer;
use super::corpus;
use super::input::{self, CACHE_BYTES_MIN, Input};
use super::plan::Plan;
use super::report::{InputReport, Report, Times};
use super::work::Work;
use super::{ReferenceAnswer, pairs_of};
use crate::args::DemoArgs;
use crate::cluster::{LocalCluster, Shape, spawner};
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, bytes};
use crate::process::Process;
use crate::{limits, say, signals};
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

/// Least shared memory of a node, MB.
const STORE_MB_MIN: u64 = 256;

/// Runs the demo as planned.
pub fn run(output: Output, plan: &Plan, args: &DemoArgs) -> Outcome {
    let started = Instant::now();
    // A report that cannot be written is known before the work, not after it.
    if let Some(path) = &args.report {
        fs::write(path, "").map_err(|e| Failure::usage(format!("cannot write {}: {e}", path.display())))?;
    }
    limits::raise_open_files()?;
    signals::leave_in_order();
    let cluster = LocalCluster::prepare(args.keep)?;
    let input = choose_input(output, plan, args, cluster.dir())?;
    let mut times = Times { listing_s: seconds(started), ..Times::default() };
    say!(output, "input     {} in {} files: {}", bytes(input.bytes()), input.files.len(), input.name);
    say!(output, "          {}", input.skipped);
    start_cluster(output, &cluster, plan, &input, &mut times)?;

    let mut work = Work::connect(output, &cluster, plan)?;
    let answer = work.run(&input)?;
    times.job_s = answer.took.as_secs_f64();
    let auditing = Instant::now();
    let (faults, audit) = work.settle()?;
    times.audit_s = seconds(auditing);
    let reference = reference(&cluster, &input)?;
    times.reference_s = reference.seconds;
    let kept = args.keep.then(|| cluster.dir().to_owned());
    drop(cluster);
    times.total_s = seconds(started);

    let mut report = Report {
        passed: false,
        failures: Vec::new(),
        seed: plan.seed,
        heads: plan.heads,
        nodes: plan.nodes,
        shards: plan.shards,
        workers: plan.workers,
        input: input_report(&input),
        tasks: answer.tasks,
        candidates: answer.candidates,
        matches: answer.matches.len(),
        interesting: pairs_of(&input, &answer.matches),
        hash: answer::hash(&answer.matches, &input.labels),
        reference_hash: reference.hash,
        faults,
        audit,
        times,
    };
    report.judge(plan);
    report.print(output);
    if let Some(dir) = kept {
        say!(output, "kept      {}", dir.display());
    }
    output.data(&report);
    if let Some(path) = &args.report {
        let text = serde_json::to_vec_pretty(&report).expect("reports have only text keys");
        fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(if report.passed { exit::OK } else { exit::FAILED })
}

/// The input: the directory that was asked for, else cargo's cache, else a corpus.
fn choose_input(output: Output, plan: &Plan, args: &DemoArgs, dir: &Path) -> Result<Input, Failure> {
    if let Some(dir) = &args.input {
        return input::directory(dir).map_err(Failure::usage);
    }
    let cache = input::cargo_cache();
    if cache.bytes() >= CACHE_BYTES_MIN {
        return Ok(cache);
    }
    say!(
        output,
        "only {} of Rust sources in cargo's cache, less than {}: a seeded corpus stands in for them",
        bytes(cache.bytes()),
        bytes(CACHE_BYTES_MIN)
    );
    let corpus = dir.join("corpus");
    let written = corpus::write(&corpus, plan.seed, corpus::CORPUS_BYTES);
    written.map_err(|e| {
        format!("cannot write a corpus to {}: {e}; free space or set TMPDIR", corpus.display())
    })?;
    let mut input = input::directory(&corpus)?;
    input.name = format!("a corpus generated from seed {}", plan.seed);
    Ok(input)
}

fn start_cluster(
    output: Output,
    cluster: &LocalCluster,
    plan: &Plan,
    input: &Input,
    times: &mut Times,
) -> Result<(), Failure> {
    let starting = Instant::now();
    cluster.start(Shape {
        heads: plan.heads,
        nodes: plan.nodes,
        shards: plan.shards,
        workers: plan.workers,
        // A node may end up with a copy of everything. Memory is taken when it is used.
        store_mb: (input.bytes() * 2 / 1_000_000).max(STORE_MB_MIN),
    })?;
    times.cluster_s = seconds(starting);
    say!(
        output,
        "cluster   {} heads with {} shards, {} nodes with {} workers each, up after {:.2} s",
        plan.heads,
        plan.shards,
        plan.nodes,
        plan.workers,
        times.cluster_s
    );
    for kill in &plan.kills {
        say!(output, "plan      kill {} at {} %", kill.victim, kill.at_percent);
    }
    say!(output);
    Ok(())
}

/// Has the reference process compute the answer by itself.
fn reference(cluster: &LocalCluster, input: &Input) -> Result<ReferenceAnswer, Failure> {
    let list = cluster.dir().join("input.json");
    let text = serde_json::to_vec(input).expect("an input has only text keys");
    fs::write(&list, text)
        .map_err(|e| format!("cannot write {}: {e}; free space or set TMPDIR", list.display()))?;
    let mut command = spawner::this_program();
    command.args(["reference", "--die-with-parent", &std::process::id().to_string()]);
    command.arg("--list").arg(&list);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = spawner::spawn(command).map_err(|e| format!("cannot start the reference run: {e}"))?;
    if let Some(process) = Process::of(child.id()) {
        cluster.adopt(process);
    }
    let mut said = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut said).map_err(|e| format!("cannot read from the reference run: {e}"))?;
    }
    let status = child.wait().map_err(|e| format!("cannot wait for the reference run: {e}"))?;
    if !status.success() {
        return Err(format!("the reference run failed ({status}); see above").into());
    }
    serde_json::from_slice(&said).map_err(|e| format!("the reference run gave no answer: {e}").into())
}

fn input_report(input: &Input) -> InputReport {
    InputReport {
        name: input.name.clone(),
        files: input.files.len(),
        bytes: input.bytes(),
        packages: input.packages,
        skipped: input.skipped,
    }
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}
