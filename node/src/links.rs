//! Drivers and workers: hello, then messages both ways.

use crate::control::Control;
use crate::input::{Inbox, Input};
use crate::packages::{Packages, runtime};
use mobula_base::JobId;
use mobula_gcs::Client;
use mobula_net::Stream;
use mobula_net::frame::FrameReader;
use mobula_net::written::Written;
use mobula_proto::{
    ClientMsg, DaemonMsg, Failure, FailureKind, Hello, JobStart, LEVEL_REFERENCES, MAGIC, ToDaemon,
    WIRE_VERSION, Welcome, client_msg, daemon_msg,
};
use mobula_scheduler::ClientId;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long a peer may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first driver of a new cluster waits until all heads are heard.
pub(crate) const LEVEL_PATIENCE: Duration = Duration::from_secs(2);
/// Unacknowledged lineage records beyond which submissions are not read: a driver slows down to
/// the speed of the control store instead of filling this daemon's memory.
pub const UNACKNOWLEDGED_MAX: u64 = 200_000;

/// What every link of a daemon shares.
pub struct Links {
    /// The daemon's loop.
    pub inbox: Inbox,
    /// The control store.
    pub control: Control,
    /// Answers hellos.
    pub welcome: Welcome,
    /// Unacknowledged lineage records, kept up to date by the loop.
    pub unacknowledged: AtomicU64,
    /// Level of the cluster's formats as the newest view has it; 0 before the first.
    pub level: AtomicU32,
    /// Rung when they have become fewer.
    pub drained: Notify,
    /// Executables and files of jobs; `None` where processes are simulated.
    pub packages: Option<Arc<Packages>>,
}

/// Serves one link until it closes.
pub async fn serve(links: Arc<Links>, client: ClientId, stream: Stream) {
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read);
    let outbox: Written<DaemonMsg> = Written::default();
    let writer = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.write_to(write).await }
    });
    if let Err(failure) = greet(&links, client, &mut reader, &outbox).await {
        outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::Refused(failure)) });
        outbox.close();
        let _ = writer.await;
        return;
    }
    while let Ok(Some(frame)) = reader.next::<ToDaemon>().await {
        while links.unacknowledged.load(Ordering::Relaxed) > UNACKNOWLEDGED_MAX && submits(&frame) {
            links.drained.notified().await;
        }
        if links.inbox.send(Input::FromClient { client, msgs: frame.msgs }).await.is_err() {
            break;
        }
    }
    outbox.close();
    let _ = links.inbox.send(Input::ClientClosed { client }).await;
    writer.abort();
}

fn submits(frame: &ToDaemon) -> bool {
    frame.msgs.iter().any(|m| matches!(m.msg, Some(client_msg::Msg::Submit(_))))
}

async fn greet<R: tokio::io::AsyncRead + Unpin>(
    links: &Links,
    client: ClientId,
    reader: &mut FrameReader<R>,
    outbox: &Written<DaemonMsg>,
) -> Result<(), Failure> {
    let refuse = |text: String| Failure::new(FailureKind::FailureUnspecified, text);
    let first = tokio::time::timeout(HELLO_TIMEOUT, reader.next::<ToDaemon>()).await;
    let frame = match first {
        Ok(Ok(Some(frame))) => frame,
        Ok(Ok(None)) => return Err(refuse("the connection ended before the hello".into())),
        Ok(Err(error)) => return Err(refuse(format!("the peer is not a Mobula process: {error}"))),
        Err(_) => return Err(refuse(format!("no hello within {HELLO_TIMEOUT:?}"))),
    };
    let mut msgs = frame.msgs.into_iter();
    let Some(ClientMsg { msg: Some(client_msg::Msg::Hello(hello)) }) = msgs.next() else {
        return Err(refuse("the first message was no hello: the peer is not a Mobula process".into()));
    };
    if hello.magic != MAGIC || hello.version != WIRE_VERSION {
        return Err(refuse(format!(
            "protocol version {} was offered, this daemon speaks {WIRE_VERSION}: use one Mobula release on both sides",
            hello.version
        )));
    }
    if hello.driver {
        driver_up(links, client, hello, outbox).await?;
    } else {
        let (taken, answer) = oneshot::channel();
        let up = Input::WorkerHello { client, hello, outbox: outbox.clone(), taken };
        if links.inbox.send(up).await.is_err() || !answer.await.unwrap_or(false) {
            return Err(refuse(
                "this worker was not expected: its job ended, or its binary is another build".into(),
            ));
        }
    }
    let rest: Vec<ClientMsg> = msgs.collect();
    if !rest.is_empty() {
        let _ = links.inbox.send(Input::FromClient { client, msgs: rest }).await;
    }
    Ok(())
}

/// Whether the cluster counts references. A new one does a moment after it is formed, once all its heads are heard:
/// that is waited for, or the first job would keep all that it makes. One that is being upgraded does not yet.
/// `view` has what is newer than a version, or what there is after so long: version and level.
async fn counts<F: Future<Output = Option<(u64, u32)>>>(
    known: u32,
    view: impl Fn(u64, Duration) -> F,
) -> bool {
    let until = Instant::now() + LEVEL_PATIENCE;
    let (mut level, mut seen) = (known, 0);
    while level < LEVEL_REFERENCES {
        let left = until.saturating_duration_since(Instant::now());
        match view(seen, left).await {
            Some(newer) if !left.is_zero() || newer.1 >= LEVEL_REFERENCES => (seen, level) = newer,
            _ => return false,
        }
    }
    true
}

/// Notes what the workers of a job need, and takes care that others can have it from here.
fn pack(packages: &Packages, start: JobStart, pid: u32, sources: &[String]) -> Result<JobStart, String> {
    let mut start = start;
    if let Some(runtime) = &mut start.runtime {
        runtime::check(runtime, sources.len())?;
        packages.take_all(&mut runtime.files, sources)?;
    }
    let program = packages.lend(JobId(start.job), pid, Path::new(&start.executable));
    let program =
        program.map_err(|e| format!("the driver's binary {} cannot be read: {e}", start.executable))?;
    start.program = Some(program);
    Ok(start)
}

/// Commits the job, then opens the link.
async fn driver_up(
    links: &Links,
    client: ClientId,
    hello: Hello,
    outbox: &Written<DaemonMsg>,
) -> Result<(), Failure> {
    let refuse = |text: String| Failure::new(FailureKind::FailureUnspecified, text);
    let mut start = hello.job.ok_or_else(|| refuse("a driver's hello names its job".into()))?;
    start.incarnation = links.welcome.incarnation;
    start.executable_hash = hello.executable_hash;
    if let Some(packages) = links.packages.clone() {
        let (pid, sources) = (hello.pid, hello.files);
        let pack = move || pack(&packages, start, pid, &sources);
        start =
            tokio::task::spawn_blocking(pack).await.map_err(|e| refuse(e.to_string()))?.map_err(refuse)?;
    }
    // Decided once: nodes that counted and nodes that did not would let go of each other's objects.
    let store: &Client = &links.control.client;
    let view = |seen, wait| {
        let store = store.clone();
        async move {
            let view = store.watch(seen, wait, HELLO_TIMEOUT).await.ok()?;
            Some((view.version, view.level))
        }
    };
    start.counted = counts(links.level.load(Ordering::Relaxed), view).await;
    if let Err(why) = crate::control::start_job(store, start.clone()).await {
        links.packages.iter().for_each(|packages| packages.let_go(JobId(start.job)));
        // It may have been committed all the same: nobody would end it.
        let (store, job) = (store.clone(), start.job);
        tokio::spawn(async move { crate::control::end_job(&store, job, false).await });
        return Err(refuse(why));
    }
    let job = JobId(start.job);
    let welcome = Welcome { job: job.0, ..links.welcome.clone() };
    outbox.push(&DaemonMsg { msg: Some(daemon_msg::Msg::Welcome(welcome)) });
    let up = Input::DriverUp { client, job, start, outbox: outbox.clone() };
    links.inbox.send(up).await.map_err(|_| refuse("the daemon is stopping".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// What is said of a cluster that reads so, view by view: (after ms, level).
    async fn asked(known: u32, views: &[(u64, u32)]) -> (bool, Duration) {
        let (start, views) = (Instant::now(), RefCell::new(views.iter()));
        let view = |seen: u64, wait: Duration| {
            let next = views.borrow_mut().next();
            async move {
                let Some((after, level)) = next else {
                    tokio::time::sleep(wait).await;
                    return Some((seen, 1));
                };
                tokio::time::sleep(Duration::from_millis(*after).min(wait)).await;
                Some((seen + 1, *level))
            }
        };
        let counted = counts(known, view).await;
        (counted, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_job_of_a_new_cluster_waits_until_references_are_counted() {
        let ms = Duration::from_millis;
        assert_eq!(asked(3, &[]).await, (true, ms(0)), "it is known already");
        assert_eq!(asked(0, &[(0, 1), (30, 1), (40, 3)]).await, (true, ms(70)));
        assert_eq!(asked(1, &[(0, 1)]).await, (false, LEVEL_PATIENCE), "it is being upgraded");
        assert!(!counts(0, |_, _| async { None }).await, "nobody answers");
    }
}
