//! The demo's driver: runs the job, strikes at the planned moments, and keeps what was
//! acknowledged.

use super::audit::{self, Audit};
use super::faults::Faults;
use super::input::Input;
use super::job::Job;
use super::monitor::Monitor;
use super::plan::Plan;
use super::report::FaultReport;
use super::screen::Screen;
use super::similarity::Match;
use crate::cluster::LocalCluster;
use crate::exit::Failure;
use crate::output::Output;
use mobula::{Client, ConnectOptions, TaskId};
use std::time::{Duration, Instant};

/// Pause between two looks at the job: short, as kills are timed by its progress.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// How often the driver's own daemon is looked at.
const LINK_PAUSE: Duration = Duration::from_secs(1);
/// A job that makes no progress for this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long late acknowledgements and recoveries are waited for after the answer.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);

/// A job on its way through the faults.
pub struct Work<'a> {
    cluster: &'a LocalCluster,
    client: Client,
    monitor: Monitor,
    faults: Faults<'a>,
    screen: Screen,
    /// Lineage records that were acknowledged, with their revisions.
    records: Vec<(TaskId, u64)>,
    /// Once it is over, with its references: what they need is not pruned before it has been audited.
    job: Option<Job>,
}

/// What the job gave.
pub struct Answer {
    /// The near-duplicates, in order.
    pub matches: Vec<Match>,
    /// Pairs that were compared.
    pub candidates: usize,
    /// Tasks submitted.
    pub tasks: usize,
    /// From the first submission to the answer.
    pub took: Duration,
}

impl<'a> Work<'a> {
    /// Connects a driver to node 1.
    ///
    /// # Errors
    /// The node does not take it.
    pub fn connect(output: Output, cluster: &'a LocalCluster, plan: &Plan) -> Result<Self, Failure> {
        let socket = cluster.node(1).and_then(|n| n.socket).ok_or("node 1 has no socket for drivers")?;
        let options = ConnectOptions {
            socket,
            job_name: "neardup".into(),
            args: Vec::new(),
            ..ConnectOptions::default()
        };
        let client = Client::connect(options)?;
        let monitor = Monitor::start(cluster.head_addresses());
        let screen = Screen::new(output);
        let faults = Faults::new(cluster, &plan.kills, plan.seed, screen.started());
        Ok(Work { cluster, client, monitor, faults, screen, records: Vec::new(), job: None })
    }

    /// Runs the job to its answer.
    ///
    /// # Errors
    /// A task failed for good, the driver's daemon is gone, or nothing moves any more.
    pub fn run(&mut self, input: &Input) -> Result<Answer, Failure> {
        let mut job = Job::start(&self.client, input);
        let (mut moved, mut link_checked) = ((0, Instant::now()), Instant::now());
        loop {
            let found = job.poll()?;
            let progress = job.progress();
            self.screen.update(&progress);
            for text in self.faults.strike(&self.monitor, &progress) {
                self.screen.event(&format!("{:>3} %  {text}", progress.percent()));
            }
            self.listen();
            if let Some(matches) = found {
                let (candidates, (_, tasks)) = (job.candidates, progress.tasks());
                self.job = Some(job);
                return Ok(Answer { matches, candidates, tasks, took: self.screen.started().elapsed() });
            }
            let done = progress.tasks().0;
            if done > moved.0 {
                moved = (done, Instant::now());
            } else if moved.1.elapsed() > PATIENCE {
                return Err(stuck(done, progress.tasks().1));
            }
            if link_checked.elapsed() > LINK_PAUSE {
                link_checked = Instant::now();
                job.check_link()?;
                if let Some(casualty) = self.cluster.first_casualty() {
                    return Err(casualty.into());
                }
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    /// Takes in what happened, and tells it.
    fn listen(&mut self) {
        let mut told = self.faults.observe(self.monitor.events());
        told.extend(self.faults.hear(self.client.take_notices()));
        for text in told {
            self.screen.event(&format!("       {text}"));
        }
        self.records.append(&mut self.client.take_committed());
    }

    /// Waits for late acknowledgements and recoveries, then reads everything back.
    ///
    /// # Errors
    /// The control store cannot be read.
    pub fn settle(mut self) -> Result<(Vec<FaultReport>, Audit), Failure> {
        let until = Instant::now() + SETTLE_PATIENCE;
        while Instant::now() < until
            && (self.client.committed() < self.client.submitted() || self.faults.is_watching())
        {
            std::thread::sleep(LOOK_PAUSE);
            self.listen();
        }
        self.listen();
        let told = self.faults.observe(self.monitor.stop());
        for text in told {
            self.screen.event(&format!("       {text}"));
        }
        self.screen.finish();
        let heads = self.cluster.head_addresses();
        // Before the end of the job, which frees its records.
        let audit = audit::run(heads, self.client.submitted(), &self.records, &self.faults.written)?;
        self.client.end(true)?;
        Ok((self.faults.reports(), audit))
    }
}

fn stuck(done: usize, known: usize) -> Failure {
    format!(
        "the job has made no progress for {} s: {done} of {known} tasks done; run it again with --keep and look at \
         the logs of the members",
        PATIENCE.as_secs()
    )
    .into()
}
