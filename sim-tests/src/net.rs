//! The simulated network behind the `Net` seam.

use crate::trace;
use mobula_net::{BoxFuture, Listener, Net, Stream};
use std::io;
use turmoil::net::{TcpListener, TcpStream};

/// The network as one simulated host sees it.
pub struct SimNet {
    /// The host's name, which is its address.
    pub host: String,
}

fn port_of(address: &str) -> io::Result<u16> {
    let port = address.rsplit(':').next().and_then(|p| p.parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{address} has no port")))
}

impl Net for SimNet {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let port = port_of(address)?;
            let listener = TcpListener::bind(("0.0.0.0", port)).await?;
            let address = format!("{}:{port}", self.host);
            Ok(Box::new(SimListener { listener, address }) as Box<dyn Listener>)
        })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let result = TcpStream::connect(address.to_owned()).await;
            let how = result.as_ref().err().map(io::Error::kind);
            trace::note(format!("{} dials {address}: {how:?}", self.host));
            Ok(Box::new(result?) as Stream)
        })
    }
}

struct SimListener {
    listener: TcpListener,
    address: String,
}

impl Listener for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            Ok((Box::new(stream) as Stream, from.to_string()))
        })
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}
