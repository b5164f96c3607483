//! `mobula snapshot`: backups of the control store.

use crate::args::SnapshotCommand;
use crate::commands::ask::{DEADLINE, failed, with_client};
use crate::commands::machine::system_seed;
use crate::config::{DEFAULT_ADDRESS, Settings, check_address};
use crate::datadir::DataDir;
use crate::exit::{self, Failure, Outcome};
use crate::output::{Output, bytes};
use crate::say;
use mobula_base::disk::RealDisk;
use mobula_gcs::Client;
use mobula_gcs::backup::archive::{self, ArchiveHead, Summary, Writer};
use mobula_gcs::backup::seed;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Runs a subcommand.
pub fn run(settings: &Settings, command: &SnapshotCommand) -> Outcome {
    match command {
        SnapshotCommand::Save { to } => save(settings, to),
        SnapshotCommand::Inspect { file } => {
            let summary = inspect(file)?;
            show(settings.output, file, &summary);
            Ok(exit::OK)
        }
        SnapshotCommand::Restore { file, listen } => restore(settings, file, listen.as_deref()),
    }
}

#[derive(Serialize)]
struct JsonSnapshot {
    file: PathBuf,
    cluster: String,
    format: u32,
    unix_ms: u64,
    bytes: u64,
    shards: Vec<JsonShard>,
}

#[derive(Serialize)]
struct JsonShard {
    shard: u32,
    index: u64,
    term: u64,
    tasks: u64,
    keys: u64,
    bytes: u64,
}

fn show(output: Output, file: &Path, summary: &Summary) {
    let shard = |head: &mobula_proto::DumpHead| JsonShard {
        shard: head.shard,
        index: head.index,
        term: head.term,
        tasks: head.tasks,
        keys: head.keys,
        bytes: head.dump_bytes + archive::manifest(head).map_or(0, |cold| cold.bytes()),
    };
    let json = JsonSnapshot {
        file: file.to_owned(),
        cluster: format!("{:016x}", summary.head.cluster),
        format: summary.head.format,
        unix_ms: summary.head.unix_ms,
        bytes: summary.bytes,
        shards: summary.shards.iter().map(shard).collect(),
    };
    say!(output, "{}: whole, {}, cluster {}", file.display(), bytes(json.bytes), json.cluster);
    for shard in &json.shards {
        say!(
            output,
            "  shard {}: up to entry {} of term {}, {} tasks, {} keys, {}",
            shard.shard,
            shard.index,
            shard.term,
            shard.tasks,
            shard.keys,
            bytes(shard.bytes)
        );
    }
    output.data(&json);
}

fn inspect(file: &Path) -> Result<Summary, Failure> {
    let open = File::open(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    Ok(archive::read(BufReader::new(open), &file.display().to_string(), |_| Ok(()))?)
}

/// Epoch of the slot map, while nothing moves.
async fn resting(client: &Client) -> Result<u64, Failure> {
    let slots = client.slot_table(DEADLINE).await.map_err(failed)?;
    match &slots.plan {
        None => Ok(slots.map.map_or(1, |map| map.epoch)),
        Some(plan) => Err(format!(
            "slots are being moved ({}): take the backup when that is done, `mobula shard list` shows how far it is",
            mobula_gcs::core::slot_table::say(plan)
        )
        .into()),
    }
}

/// Removes a half-written file.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it has got its name.
        fs::remove_file(&self.0).ok();
    }
}

fn save(settings: &Settings, to: &Path) -> Outcome {
    let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    with_client(settings, async |client| {
        let file = match to.is_dir() {
            true => to.join(format!("mobula-{:016x}-{}.snapshot", client.cluster(), unix_ms / 1000)),
            false => to.to_owned(),
        };
        let mut name = file.clone().into_os_string();
        name.push(".partial");
        let partial = Partial(name.into());
        let cannot = |e: io::Error| format!("cannot write {}: {e}", file.display());
        let open = File::create(&partial.0).map_err(cannot)?;
        let before = resting(&client).await?;
        let (cluster, shards) = (client.cluster(), client.shards());
        let head = ArchiveHead { format: archive::FORMAT, cluster, shards, unix_ms };
        let mut writer = Writer::new(BufWriter::new(open), &head).map_err(cannot)?;
        for shard in 0..shards {
            client.dump(shard, DEADLINE, &mut writer).await.map_err(failed)?;
        }
        // Shards are read one after the other: what moved meanwhile may be in none of them.
        if resting(&client).await? != before {
            return Err("slots were moved while the backup was taken: take it again".to_owned().into());
        }
        let open = writer.finish().and_then(|mut to| to.flush().map(|()| to)).map_err(cannot)?;
        let open = open.into_inner().map_err(|e| cannot(e.into_error()))?;
        open.sync_all().map_err(cannot)?;
        // What was written is what will be read.
        let summary = inspect(&partial.0)?;
        fs::rename(&partial.0, &file).map_err(cannot)?;
        let parent = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(cannot)?;
        show(settings.output, &file, &summary);
        Ok(exit::OK)
    })
}

#[derive(Serialize)]
struct JsonRestored {
    cluster: String,
    from_cluster: String,
    address: String,
    data_dir: PathBuf,
}

/// Makes a data directory; nothing is started.
fn restore(settings: &Settings, file: &Path, listen: Option<&str>) -> Outcome {
    let address = listen.unwrap_or(DEFAULT_ADDRESS);
    check_address(address).map_err(Failure::usage)?;
    let output = settings.output;
    let dir = DataDir(settings.data_dir.clone());
    // Damage is found before anything is written.
    inspect(file)?;
    let head = dir.head();
    let disk = RealDisk::new(&head).map_err(|e| format!("cannot use {}: {e}", head.display()))?;
    let cluster = new_cluster()?;
    let open = File::open(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    let name = file.display().to_string();
    let summary = seed::restore(Arc::new(disk), cluster, address, BufReader::new(open), &name)?;
    say!(output, "restored {} into {}", file.display(), dir.0.display());
    say!(
        output,
        "  the new cluster {cluster:016x} has one head, at {address}; heads of the old cluster {:016x} are refused",
        summary.head.cluster
    );
    let shards = summary.head.shards;
    say!(
        output,
        "  next      `mobula start --head --shards {shards} --listen {address} --data-dir {}`, then `mobula head \
         add` for the others",
        dir.0.display()
    );
    output.data(&JsonRestored {
        cluster: format!("{cluster:016x}"),
        from_cluster: format!("{:016x}", summary.head.cluster),
        address: address.to_owned(),
        data_dir: dir.0,
    });
    Ok(exit::OK)
}

/// An id for a cluster that is made here.
pub fn new_cluster() -> Result<u64, Failure> {
    Ok(system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?.max(1))
}
