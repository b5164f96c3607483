//! One run of the demo, from the first process to the verdict.

use super::answer;
use super::audit;
use super::corpus;
use super::faults::Faults;
use super::input::{self, CACHE_BYTES_MIN, Input};
use super::job::Job;
use super::monitor::Monitor;
use super::plan::Plan;
use super::progress::Progress;
use super::report::{InputReport, Report, Times};
use super::screen::Screen;
use super::similarity::Match;
use super::{ReferenceAnswer, pairs_of};
use crate::args::DemoArgs;
use crate::cluster::{LocalCluster, Shape, spawner};
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, bytes};
use crate::process::Process;
use crate::{limits, say, signals};
use mobula::{Client, ConnectOptions, TaskId};
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Pause between two looks at the job: short, as kills are timed by its progress.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// A job that makes no progress for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long late acknowledgements and recoveries are waited for after the answer.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
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
    let (input, reference_input) = choose_input(output, plan, args, cluster.dir())?;
    let mut times = Times { listing_s: started.elapsed().as_secs_f64(), ..Times::default() };
    say!(output, "input     {} in {} files: {}", bytes(input.bytes()), input.files.len(), input.name);
    say!(output, "          {}", input.skipped);

    let starting = Instant::now();
    cluster.start(shape(plan, &input))?;
    times.cluster_s = starting.elapsed().as_secs_f64();
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

    let mut run = Run::connect(output, &cluster, plan)?;
    let matches = run.work(&input)?;
    times.job_s = run.screen.started().elapsed().as_secs_f64();
    let done = run.settle(&cluster, &mut times)?;
    drop(cluster);
    let reference = finish_reference(output, reference_input.as_deref())?;
    times.reference_s = reference.seconds;
    times.total_s = started.elapsed().as_secs_f64();

    let mut report = Report {
        passed: false,
        failures: Vec::new(),
        seed: plan.seed,
        heads: plan.heads,
        nodes: plan.nodes,
        shards: plan.shards,
        workers: plan.workers,
        input: InputReport {
            name: input.name.clone(),
            files: input.files.len(),
            bytes: input.bytes(),
            packages: input.packages,
            skipped: input.skipped,
        },
        tasks: done.tasks,
        candidates: done.candidates,
        matches: matches.len(),
        interesting: pairs_of(&input, &matches),
        hash: answer::hash(&matches, &input.labels),
        reference_hash: reference.hash,
        faults: done.faults,
        audit: done.audit,
        times,
    };
    report.judge(plan);
    report.print(output);
    output.data(&report);
    if let Some(path) = &args.report {
        let text = serde_json::to_vec_pretty(&report).expect("reports have only text keys");
        fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(if report.passed { exit::OK } else { exit::FAILED })
}
