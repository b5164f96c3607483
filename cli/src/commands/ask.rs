//! What the operators' commands share: finding the cluster, waiting, and saying why not.

use crate::commands::machine::system_seed;
use crate::config::{DEFAULT_ADDRESS, Settings};
use crate::datadir::DataDir;
use crate::exit::{Failure, Outcome};
use mobula_gcs::{Client, Error};
use mobula_look::Look;
use std::time::Duration;

/// A single request to the cluster is given up after this.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Addresses of heads: those that were named, else those of this machine's daemon, else the default.
pub fn addresses(settings: &Settings) -> Vec<String> {
    let mut addresses = settings.addresses.clone();
    if addresses.is_empty() {
        addresses = DataDir(settings.data_dir.clone()).serving().map(|r| r.heads).unwrap_or_default();
    }
    if addresses.is_empty() {
        addresses.push(DEFAULT_ADDRESS.into());
    }
    addresses
}

/// Runs `command` with a connected client.
pub fn with_client<F: Future<Output = Outcome>>(
    settings: &Settings,
    command: impl FnOnce(Client) -> F,
) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot wait for answers: {e}"))?;
    let seed = system_seed().map_err(|e| format!("cannot read /dev/urandom: {e}"))?;
    runtime.block_on(async {
        let client = Client::new(settings.net()?, addresses(settings), seed);
        client.connect(DEADLINE).await.map_err(failed)?;
        command(client).await
    })
}

/// Runs `command` with somebody who looks at the cluster.
pub fn looking<F: Future<Output = Outcome>>(settings: &Settings, command: impl FnOnce(Look) -> F) -> Outcome {
    let (net, heads) = (settings.net()?, addresses(settings));
    with_client(settings, async |client| command(Look::new(net, client, heads)).await)
}

/// A failed request, with what to do when a majority is gone.
pub fn failed(error: Error) -> Failure {
    match error {
        Error::Unreachable { heads, last } => format!(
            "no majority of the heads {heads:?} answers (last: {last}): start them again with the data \
             directories they had, nothing is lost then; if a majority of the disks is gone, see `mobula head \
             recover plan`"
        )
        .into(),
        // Nothing of the cluster's is wrong, but what this command was given.
        stranger @ Error::NeedsToken { .. } => Failure::usage(stranger.to_string()),
        other => other.into(),
    }
}
