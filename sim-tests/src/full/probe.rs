//! What a node says of itself to those who watch it, asked over the simulated network: its metrics.

use mobula_chaos::probe::answered;
pub use mobula_chaos::probe::{Metrics, all, at_work, memory, objects};
use mobula_net::Net;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The metrics of the node at an address.
///
/// # Errors
/// It does not answer, or with something else.
pub async fn metrics(net: &dyn Net, address: &str) -> Result<Metrics, String> {
    let ask = async {
        let mut stream = net.dial(address).await.map_err(|error| error.to_string())?;
        let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        Ok::<_, String>(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = tokio::time::timeout(PATIENCE, ask).await.map_err(|_| "no answer".to_owned())??;
    answered(&answer)
}
