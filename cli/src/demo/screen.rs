//! What a person sees while the job runs: a bar for each stage on a terminal, plain lines
//! elsewhere.

use super::progress::Progress;
use crate::output::Output;
use crate::say;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Instant;

/// The screen of a running job.
pub struct Screen {
    output: Output,
    started: Instant,
    bars: Option<(MultiProgress, Vec<ProgressBar>)>,
    /// Stages whose end was told in a plain line.
    told: Vec<&'static str>,
}

impl Screen {
    /// The job starts now.
    pub fn new(output: Output) -> Screen {
        let bars = output.is_watched().then(|| {
            let target =
                if output.is_json { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::stdout() };
            let multi = MultiProgress::with_draw_target(target);
            let style = ProgressStyle::with_template("  {prefix:<8} [{bar:32}] {pos:>4}/{len:<4} {msg}")
                .expect("the template is fixed")
                .progress_chars("=> ");
            let bars = Progress::default()
                .stages()
                .iter()
                .map(|s| multi.add(ProgressBar::new(0).with_style(style.clone()).with_prefix(s.name)))
                .collect();
            (multi, bars)
        });
        Screen { output, started: Instant::now(), bars, told: Vec::new() }
    }

    /// Shows how far the job is.
    pub fn update(&mut self, progress: &Progress) {
        for (at, stage) in progress.stages().iter().enumerate() {
            match &self.bars {
                Some((_, bars)) => {
                    bars[at].set_length(stage.total.unwrap_or(0) as u64);
                    bars[at].set_position(stage.done as u64);
                }
                None => {
                    if stage.total == Some(stage.done) && !self.told.contains(&stage.name) {
                        self.told.push(stage.name);
                        self.event(&format!("{:<8} {} tasks done", stage.name, stage.done));
                    }
                }
            }
        }
    }

    /// Tells what happened, with the time since the job started.
    pub fn event(&self, text: &str) {
        let line = format!("{:>7.3} s  {text}", self.started.elapsed().as_secs_f64());
        match &self.bars {
            // An error means that the terminal is gone; the next plain line will notice.
            Some((multi, _)) => drop(multi.println(line)),
            None => say!(self.output, "{line}"),
        }
    }

    /// The job is over: bars stay as they are.
    pub fn finish(&self) {
        for bar in self.bars.iter().flat_map(|(_, bars)| bars) {
            bar.abandon();
        }
    }

    /// When the job started.
    pub fn started(&self) -> Instant {
        self.started
    }
}
