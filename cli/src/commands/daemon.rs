//! `mobula daemon`: one process with the roles it was given, until it is told to stop.

use crate::args::{DaemonArgs, MemberArgs};
use crate::commands::machine::{die_with_parent, host_name, memory_mb, own_ip, system_seed};
use crate::commands::{fault_switch, gpus};
use crate::config::{DEFAULT_ADDRESS, DEFAULT_SHARDS, DEFAULT_STORE_MB, Settings};
use crate::datadir::{self, DataDir, Ready};
use crate::exit::{self, Failure, Outcome};
use crate::limits;
use crate::process::Process;
use mobula_base::disk::RealDisk;
use mobula_base::resources::{GPU, MEMORY};
use mobula_gcs::damage::MARK;
use mobula_gcs::{Client, Head, HeadConfig, Parts, RaftTiming};
use mobula_look::log::Ring;
use mobula_look::{Look, page};
use mobula_net::http::Pages;
use mobula_net::seam::SharedNet;
use mobula_node::memory::MEMORY_FULL;
use mobula_node::{LINGER, NodeConfig};
use rustix::process::setsid;
use std::fs::{self, File, TryLockError};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// Runs the daemon until SIGTERM or SIGINT.
pub fn run(settings: &Settings, args: &DaemonArgs) -> Outcome {
    die_with_parent(args.die_with_parent)?;
    if args.own_session {
        // Fails only for a leader of a session, which is what is wanted.
        let _ = setsid();
    }
    let member = settings.member(&args.member);
    let log = Ring::default();
    let is_json = log_format(member.log_format.as_deref().unwrap_or("text")).map_err(Failure::usage)?;
    log_to_stderr(is_json, log.clone());
    end_on_panic();
    limits::raise_open_files()?;
    let dir = DataDir(settings.data_dir.clone());
    let _lock = claim(&dir)?;
    let seed = system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot wait for input: {e}"))?;
    let served =
        runtime.block_on(mobula_gcs::in_scope(seed, serve(settings, &dir, args, &member, seed, &log)));
    // Kept on a failure's way out it would only be stale: its process is gone.
    let _ = fs::remove_file(dir.ready());
    let _ = fs::remove_file(dir.process());
    served.map(|()| exit::OK)
}

/// A task that panicked may leave others waiting for ever, and nobody would see why. A daemon that has
/// ended is seen, started again, and recovers.
fn end_on_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        std::process::abort();
    }));
}

/// Whether logs are JSON.
///
/// # Errors
/// There is no such format.
pub fn log_format(format: &str) -> Result<bool, String> {
    match format {
        "text" => Ok(false),
        "json" => Ok(true),
        other => Err(format!("\"{other}\" is no log format; use text or json")),
    }
}

/// Where a daemon logs to: its file or terminal, and the lines that it tells whoever asks.
struct Both(Ring);

impl io::Write for Both {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn log_to_stderr(is_json: bool, ring: Ring) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MOBULA_LOG")
        .unwrap_or_else(|_| "warn,mobula=info,mobula_gcs=info,mobula_node=info".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Both(ring.clone()))
        .with_ansi(false);
    if is_json { logs.json().flatten_event(true).init() } else { logs.init() }
}

/// Takes the data directory for this process, and says so in it.
fn claim(dir: &DataDir) -> Result<File, Failure> {
    let shown = dir.0.display();
    let unusable = |e: io::Error| format!("cannot use {shown} as data directory: {e}");
    fs::create_dir_all(&dir.0).map_err(unusable)?;
    let lock = File::options().create(true).truncate(false).write(true).open(dir.lock()).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(
                format!("another daemon runs from {shown}; stop it, or use another --data-dir").into()
            );
        }
        Err(TryLockError::Error(e)) => return Err(unusable(e).into()),
    }
    let _ = fs::remove_file(dir.ready());
    datadir::write(&dir.process(), &Process::current()).map_err(unusable)?;
    Ok(lock)
}

/// Runs the roles. The node leaves before the head goes, as leaving takes a head.
async fn serve(
    settings: &Settings,
    dir: &DataDir,
    args: &DaemonArgs,
    member: &MemberArgs,
    seed: u64,
    log: &Ring,
) -> Result<(), Failure> {
    let mut net = settings.net()?;
    if let Some(socket) = &args.fault_switch {
        net = fault_switch::install(socket, net, seed)?;
    }
    let mut asked = stop_requests()?;
    let cpus =
        member.cpus.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u32));
    let head = match member.head {
        false => None,
        true => tokio::select! {
            biased;
            () = stopped(&mut asked) => return Ok(()),
            head = start_head(settings, net.clone(), dir, args, member, seed, log) => Some(head?),
        },
    };
    let mut ready = Ready {
        process: Process::current(),
        role: match (&head, cpus) {
            (Some(_), 0) => "head",
            (Some(_), _) => "head+node",
            (None, _) => "node",
        }
        .into(),
        name: member.name.clone().unwrap_or_else(host_name),
        head_address: head.as_ref().map(|h| h.address().to_owned()),
        heads: heads(head.as_ref(), member),
        peer_address: None,
        socket: None,
        incarnation: None,
    };
    if cpus == 0 {
        announce(dir, &ready);
        let mut running = head;
        while let Some(head) = running.take() {
            let ended = head.run_until_shutdown(stopped(&mut asked)).await;
            // Damage that was found while it ran: it begins again, without what is damaged.
            match ended {
                Err(error) if !member.no_repair && dir.head().join(MARK).exists() => {
                    tracing::error!(%error, "this head begins again");
                    let again = start_head(settings, net.clone(), dir, args, member, seed, log);
                    running = tokio::select! {
                        biased;
                        () = stopped(&mut asked) => None,
                        head = again => Some(head?),
                    };
                }
                ended => ended?,
            }
        }
        return Ok(());
    }
    let late = Duration::from_millis(args.late_ms);
    let pages = Pages(Some(log.router()));
    let config = NodeConfig { late, pages, ..node_config(dir, member, &ready, cpus, seed)? };
    settings.check_exposure(&config.listen, member.insecure)?;
    ready.socket = Some(config.socket.clone());
    let on_ready = |joined: mobula_node::Ready| {
        ready.incarnation = Some(joined.incarnation);
        ready.peer_address = Some(joined.address);
        announce(dir, &ready);
    };
    let node =
        async { mobula_node::run(config, net, on_ready, stopped(&mut asked)).await.map_err(node_failure) };
    let Some(head) = head else { return node.await };
    let (node_left, may_stop) = oneshot::channel::<()>();
    let head = head.run_until_shutdown(async {
        let _ = may_stop.await;
    });
    tokio::pin!(node, head);
    tokio::select! {
        biased;
        failed = &mut head => Ok(failed?),
        left = &mut node => {
            drop(node_left);
            head.await?;
            left
        }
    }
}

async fn start_head(
    settings: &Settings,
    net: SharedNet,
    dir: &DataDir,
    args: &DaemonArgs,
    member: &MemberArgs,
    seed: u64,
    log: &Ring,
) -> Result<Head, Failure> {
    let mut timing = RaftTiming::default();
    if let Some(ms) = args.rebalance_ms {
        timing.rebalance_ms = ms;
    }
    let disk = RealDisk::new(dir.head()).map_err(|e| format!("cannot use {}: {e}", dir.head().display()))?;
    let address = member.listen.clone().unwrap_or_else(|| DEFAULT_ADDRESS.into());
    settings.check_exposure(&address, member.insecure)?;
    let config = HeadConfig {
        pages: head_pages(&net, &address, member, seed, log),
        address,
        advertise: member.advertise.clone().unwrap_or_default(),
        join: member.join.clone(),
        shards: member.shards.unwrap_or(DEFAULT_SHARDS),
        seed,
        timing,
        repair: !member.no_repair,
        ..HeadConfig::default()
    };
    Head::start(config, Parts::new(net, Arc::new(disk))).await.map_err(|error| {
        let in_use = matches!(&error, mobula_gcs::Error::Listen { source, .. } if is_in_use(source));
        coded(error, in_use)
    })
}

/// The web page, and the log. They ask the heads as anybody does, this one among them.
fn head_pages(net: &SharedNet, address: &str, member: &MemberArgs, seed: u64, log: &Ring) -> Pages {
    let mut heads = member.join.clone();
    let own = member.advertise.as_deref().unwrap_or(address);
    if !heads.iter().any(|head| head == own) {
        heads.insert(0, own.to_owned());
    }
    let client = Client::new(net.clone(), heads.clone(), seed);
    Pages(Some(page::router(Look::new(net.clone(), client, heads)).merge(log.router())))
}

fn node_failure(error: mobula_node::Error) -> Failure {
    let in_use = matches!(&error, mobula_node::Error::Io { source, .. } if is_in_use(source));
    coded(error, in_use)
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn coded(error: impl std::fmt::Display, is_in_use: bool) -> Failure {
    let code = if is_in_use { exit::PORT_IN_USE } else { exit::FAILED };
    Failure { code, message: error.to_string() }
}

/// The heads to talk to: our own first.
fn heads(head: Option<&Head>, member: &MemberArgs) -> Vec<String> {
    let mut heads: Vec<String> = head.iter().map(|h| h.address().to_owned()).collect();
    for other in &member.join {
        if !heads.contains(other) {
            heads.push(other.clone());
        }
    }
    heads
}

fn node_config(
    dir: &DataDir,
    member: &MemberArgs,
    ready: &Ready,
    cpus: u32,
    seed: u64,
) -> Result<NodeConfig, Failure> {
    Ok(NodeConfig {
        name: ready.name.clone(),
        heads: ready.heads.clone(),
        listen: match (&member.listen, member.head) {
            (Some(listen), false) => listen.clone(),
            _ => format!("{}:0", own_ip(&ready.heads)),
        },
        socket: dir.socket(),
        workers: cpus,
        resources: resources(member).map_err(Failure::usage)?,
        labels: member.label.iter().map(|l| label(l)).collect::<Result<_, _>>().map_err(Failure::usage)?,
        store_bytes: member.store_mb.unwrap_or(DEFAULT_STORE_MB).saturating_mul(1_000_000),
        late: Duration::ZERO,
        linger: member.linger_ms.map_or(LINGER, Duration::from_millis),
        spill_dir: Some(dir.spill()),
        packages_dir: Some(dir.0.clone()),
        memory_full: member.memory_full.map_or(MEMORY_FULL, |percent| f64::from(percent) / 100.0),
        pages: Pages::default(),
        seed,
    })
}

/// GPUs, memory and what is named.
fn resources(member: &MemberArgs) -> Result<Vec<(String, f64)>, String> {
    let mut all = member.resource.iter().map(|r| resource(r)).collect::<Result<Vec<_>, _>>()?;
    // Whatever is said counts, 0, too.
    let devices = member.gpus.unwrap_or_else(gpus::found);
    if devices > 0 {
        all.push((GPU.into(), f64::from(devices)));
    }
    let store_mb = member.store_mb.unwrap_or(DEFAULT_STORE_MB);
    let offered = member.memory_mb.or_else(|| Some(memory_mb()?.saturating_sub(store_mb)));
    if let Some(mb) = offered.filter(|mb| *mb > 0) {
        all.push((MEMORY.into(), mb as f64));
    }
    Ok(all)
}

/// Reads `NAME=AMOUNT`.
///
/// # Errors
/// It is something else.
pub fn resource(text: &str) -> Result<(String, f64), String> {
    let wrong = || format!("\"{text}\" is no resource; write NAME=AMOUNT, such as tape=1");
    let (name, amount) = text.split_once('=').ok_or_else(wrong)?;
    let amount: f64 = amount.parse().map_err(|_| wrong())?;
    if let GPU | MEMORY = name {
        return Err(format!(
            "{name} has an option of its own: --{}",
            if name == GPU { "gpus" } else { "memory-mb" }
        ));
    }
    if name.is_empty() || !amount.is_finite() || amount < 0.0 {
        return Err(wrong());
    }
    Ok((name.to_owned(), amount))
}

/// Reads `KEY=VALUE`; the value may be empty.
///
/// # Errors
/// It is something else.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err(format!("\"{text}\" is no label; write KEY=VALUE, such as zone=a")),
    }
}

fn announce(dir: &DataDir, ready: &Ready) {
    if let Err(error) = datadir::write(&dir.ready(), ready) {
        tracing::error!(%error, path = %dir.ready().display(), "cannot say that this daemon is ready");
    }
    tracing::info!(role = ready.role, name = ready.name, incarnation = ready.incarnation, "ready");
}

/// Turns true when a signal asks this process to stop.
fn stop_requests() -> Result<watch::Receiver<bool>, Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| format!("cannot catch signals: {e}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| format!("cannot catch signals: {e}"))?;
    let (ask, asked) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        let _ = ask.send(true);
        // Kept: a closed channel must not look like another request.
        std::future::pending::<()>().await;
    });
    Ok(asked)
}

async fn stopped(asked: &mut watch::Receiver<bool>) {
    if asked.wait_for(|is_asked| *is_asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_have_a_name_and_an_amount() {
        assert_eq!(resource("tape=1.5"), Ok(("tape".into(), 1.5)));
        for wrong in ["tape", "=1", "tape=x", "tape=-1", "tape=inf", "gpu=1", "memory_mb=1"] {
            assert!(resource(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn gpus_that_are_declared_count_and_others_are_looked_for() {
        let gpus = |gpus: Option<u32>| {
            let all = resources(&MemberArgs { gpus, ..MemberArgs::default() }).expect("good");
            all.iter().find(|(name, _)| name == GPU).map(|(_, amount)| *amount)
        };
        assert_eq!(gpus(Some(3)), Some(3.0));
        assert_eq!(gpus(Some(0)), None);
        assert_eq!(gpus(None).unwrap_or(0.0), f64::from(gpus::found()));
    }

    #[test]
    fn labels_have_a_key_and_perhaps_a_value() {
        assert_eq!(label("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert_eq!(label("ssd="), Ok(("ssd".into(), String::new())));
        for wrong in ["zone", "=a", ""] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }
}
