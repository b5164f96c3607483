//! The local link: a Unix socket whose first byte hands over the shared memory.

use mobula_net::{BoxFuture, Stream};
use mobula_objstore::Region;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;

/// Accepts drivers and workers of this machine. The stream it returns starts with the peer's
/// hello; whatever makes the memory visible to the peer has been done.
pub trait LocalListener: Send {
    /// The next one.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>>;
}

/// The real one.
pub struct UnixLocal {
    listener: UnixListener,
    region: Region,
    path: PathBuf,
}

impl UnixLocal {
    /// Listens at `path`; a socket that a dead daemon left there is replaced.
    ///
    /// # Errors
    /// A live daemon answers there, or the path cannot be used.
    pub fn bind(path: &Path, region: Region) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another daemon answers at {}; stop it or use another --data-dir", path.display()),
            ));
        }
        match std::fs::remove_file(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        Ok(UnixLocal { listener, region, path: path.to_owned() })
    }
}

impl Drop for UnixLocal {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl LocalListener for UnixLocal {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let (stream, _) = self.listener.accept().await?;
            if let Some(fd) = self.region.fd() {
                let fds = [fd];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                ancillary.push(SendAncillaryMessage::ScmRights(&fds));
                // One byte always fits the buffer of a fresh socket.
                rustix::net::sendmsg(&stream, &[IoSlice::new(b"M")], &mut ancillary, SendFlags::NOSIGNAL)?;
            }
            Ok(Box::new(stream) as Stream)
        })
    }
}
