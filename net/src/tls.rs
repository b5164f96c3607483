//! TLS over a [`Net`]: one directory holds everything, and every connection is encrypted.
//!
//! The directory has `ca.pem` (who is believed), `cert.pem` and `key.pem` (who this process is; a
//! client needs only the first). The dialled host or address must be among the certificate's names.
//! Servers do not ask for client certificates: the cluster token says who may speak.

use crate::auth::Token;
use crate::seam::{BoxFuture, Listener, Net, Stream};
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, crypto, version};
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector, server::TlsStream};

/// Certificates that are believed.
pub const CA_FILE: &str = "ca.pem";
/// This process's own certificate.
pub const CERT_FILE: &str = "cert.pem";
/// Its key.
pub const KEY_FILE: &str = "key.pem";

/// What TLS needs, read once.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    acceptor: Option<TlsAcceptor>,
}

impl Tls {
    /// Reads the directory. Without a certificate in it, this process can dial but not listen.
    ///
    /// # Errors
    /// A file is missing or is not what it should be; the text names it.
    pub fn load(dir: &Path) -> Result<Tls, String> {
        let provider = Arc::new(crypto::ring::default_provider());
        let versions = &[&version::TLS13];
        let mut roots = RootCertStore::empty();
        for authority in certificates(&dir.join(CA_FILE))? {
            roots.add(authority).map_err(|error| format!("{}: {error}", dir.join(CA_FILE).display()))?;
        }
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (cert, key) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let acceptor = if cert.exists() || key.exists() {
            let chain = certificates(&cert)?;
            let secret =
                PrivateKeyDer::from_pem_file(&key).map_err(|error| format!("{}: {error}", key.display()))?;
            let server = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(versions)
                .map_err(|error| error.to_string())?
                .with_no_client_auth()
                .with_single_cert(chain, secret)
                .map_err(|error| format!("{} and {}: {error}", cert.display(), key.display()))?;
            Some(TlsAcceptor::from(Arc::new(server)))
        } else {
            None
        };
        Ok(Tls { connector: TlsConnector::from(Arc::new(client)), acceptor })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |why: String| format!("{}: {why}; make one with `mobula tls new`", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() { Err(wrong("no certificate in it".into())) } else { Ok(found) }
}

/// A network behind a token, or TLS, or both.
pub struct Guarded<N> {
    net: N,
    token: Option<Token>,
    tls: Option<Tls>,
}

impl<N: Net> Guarded<N> {
    /// Guards `net`.
    pub fn new(net: N, token: Option<Token>, tls: Option<Tls>) -> Self {
        Guarded { net, token, tls }
    }
}

impl<N: Net> Net for Guarded<N> {
    fn listen<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let Some(tls) = &self.tls else { return self.net.listen(address).await };
            let acceptor = tls.acceptor.clone().ok_or_else(|| {
                let why = format!("a listener with TLS needs {CERT_FILE} and {KEY_FILE} beside {CA_FILE}");
                io::Error::new(io::ErrorKind::InvalidInput, why)
            })?;
            let inner = self.net.listen(address).await?;
            Ok(Box::new(TlsListener { inner, acceptor }) as Box<dyn Listener>)
        })
    }

    fn dial<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            // A refusal passes through as it is: it is proof that the process is gone.
            let stream = self.net.dial(address).await?;
            let Some(tls) = &self.tls else { return Ok(stream) };
            let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
            let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, format!("{host}: {error}")))?;
            let stream = tls.connector.connect(name, stream).await.map_err(|error| {
                io::Error::new(error.kind(), format!("no TLS connection to {address}: {error}"))
            })?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }
}

struct TlsListener {
    inner: Box<dyn Listener>,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, String)>> {
        Box::pin(async move {
            let (stream, from) = self.inner.accept().await?;
            let shaking = Accepted::Shaking(Box::new(self.acceptor.accept(stream)));
            Ok((Box::new(shaking) as Stream, from))
        })
    }

    fn address(&self) -> String {
        self.inner.address()
    }
}

/// A connection that shakes hands when it is first read or written, so that a slow or silent
/// caller holds up nobody but itself.
enum Accepted {
    Shaking(Box<Accept<Stream>>),
    Ready(Box<TlsStream<Stream>>),
    /// The handshake failed; it must not be polled again.
    Failed,
}

impl Accepted {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut TlsStream<Stream>>>> {
        if let Accepted::Shaking(shaking) = self {
            match ready!(Pin::new(&mut **shaking).poll(cx)) {
                Ok(stream) => *self = Accepted::Ready(Box::new(stream)),
                Err(error) => {
                    *self = Accepted::Failed;
                    return Poll::Ready(Err(error));
                }
            }
        }
        match self {
            Accepted::Ready(stream) => Poll::Ready(Ok(Pin::new(&mut **stream))),
            Accepted::Failed | Accepted::Shaking(_) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, "the TLS handshake failed")))
            }
        }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx))?.poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx))?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::TcpNet;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn directory(name: &str, names: &[&str]) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("mobula-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("writable");
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("good names");
        std::fs::write(dir.join(CA_FILE), made.cert.pem()).expect("writable");
        std::fs::write(dir.join(CERT_FILE), made.cert.pem()).expect("writable");
        std::fs::write(dir.join(KEY_FILE), made.signing_key.serialize_pem()).expect("writable");
        dir
    }

    #[tokio::test]
    async fn bytes_arrive_encrypted_and_strangers_are_not_believed() {
        let (ours, theirs) = (directory("ours", &["127.0.0.1"]), directory("theirs", &["127.0.0.1"]));
        let net = |dir: &Path| Guarded::new(TcpNet, None, Some(Tls::load(dir).expect("complete")));
        let mut listener = net(&ours).listen("127.0.0.1:0").await.expect("a free port");
        let address = listener.address();
        let server = tokio::spawn(async move {
            let mut said = Vec::new();
            // A silent caller in front holds up nobody.
            let (_silent, _) = listener.accept().await.expect("open");
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("open");
                let mut word = [0; 5];
                said.push(stream.read_exact(&mut word).await.map(|_| word));
                stream.write_all(b"there").await.ok();
            }
            said
        });
        let _silent = TcpNet.dial(&address).await.expect("listening");
        let mut stream = net(&ours).dial(&address).await.expect("known");
        stream.write_all(b"hello").await.expect("open");
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.expect("open");
        assert_eq!(&word, b"there");
        let error = net(&theirs).dial(&address).await.err().expect("not believed");
        assert!(error.to_string().contains("certificate"), "{error}");
        let said = server.await.expect("no panic");
        assert_eq!(said[0].as_ref().ok(), Some(b"hello"));
        assert!(said[1].is_err());
        for dir in [ours, theirs] {
            std::fs::remove_dir_all(dir).expect("it was there");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Tls::load(Path::new("/nowhere")).err().expect("nothing there");
        assert!(error.contains("/nowhere/ca.pem") && error.contains("mobula tls new"), "{error}");
    }
}
