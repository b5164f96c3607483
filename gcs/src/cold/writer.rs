//! Who writes: a thread of its own where the disk may block, the caller otherwise.

use mobula_base::disk::Disk;
use std::io;
use std::sync::mpsc;

type Job = Box<dyn FnOnce() + Send>;

/// Does jobs one after the other, in the order in which they were given. Clones share the thread,
/// which ends with the last of them.
#[derive(Clone)]
pub struct Writer(Option<mpsc::Sender<Job>>);

impl Writer {
    /// A writer for `disk`.
    ///
    /// # Errors
    /// There can be no further thread.
    pub fn start(disk: &dyn Disk) -> io::Result<Self> {
        if !disk.blocks() {
            return Ok(Writer::inline());
        }
        let (sender, jobs) = mpsc::channel::<Job>();
        let named = std::thread::Builder::new().name("mobula-cold".into());
        named.spawn(move || jobs.iter().for_each(|job| job()))?;
        Ok(Writer(Some(sender)))
    }

    /// A writer that works in the caller's time.
    pub fn inline() -> Self {
        Writer(None)
    }

    /// Does a job, now or soon.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        match &self.0 {
            // The thread ends only with the last sender.
            Some(sender) => _ = sender.send(Box::new(job)),
            None => job(),
        }
    }

    /// Whether jobs are done before [`Writer::run`] returns.
    pub fn is_inline(&self) -> bool {
        self.0.is_none()
    }

    /// Returns once all jobs given before are done.
    pub fn drain(&self) {
        let (tell, told) = mpsc::channel();
        self.run(move || _ = tell.send(()));
        told.recv().ok();
    }
}
