//! Where gdb connects.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use gdb::{Debugger, ServeError, Subject};

/// Where gdb is to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A unix socket, made there.
    Unix(PathBuf),
    /// A TCP port of this host.
    Tcp(SocketAddr),
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        match text.parse() {
            Ok(address) => Ok(Listen::Tcp(address)),
            Err(_) if text.is_empty() => Err("write a path, or 127.0.0.1:PORT".into()),
            Err(_) => Ok(Listen::Unix(text.into())),
        }
    }
}

/// A socket that gdb can connect to; that of a path is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Socket,
    address: String,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// A gdb that has connected.
pub(crate) enum Peer {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Listener {
    pub fn bind(listen: &Listen) -> io::Result<Listener> {
        Ok(match listen {
            Listen::Unix(path) => {
                let socket = Socket::Unix(UnixListener::bind(path)?, path.clone());
                Listener { socket, address: path.display().to_string() }
            }
            Listen::Tcp(address) => {
                let socket = TcpListener::bind(address)?;
                let address = socket.local_addr()?.to_string();
                Listener { socket: Socket::Tcp(socket), address }
            }
        })
    }

    /// As gdb wants it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on [`Listener::accept`] does not wait.
    pub fn do_not_wait(&self) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(socket, _) => socket.set_nonblocking(true),
            Socket::Tcp(socket) => socket.set_nonblocking(true),
        }
    }

    pub fn accept(&self) -> io::Result<Peer> {
        match &self.socket {
            Socket::Unix(socket, _) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(false)?;
                Ok(Peer::Unix(stream))
            }
            Socket::Tcp(socket) => {
                let (stream, _) = socket.accept()?;
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                Ok(Peer::Tcp(stream))
            }
        }
    }
}

impl Peer {
    /// Serves this gdb until it goes.
    pub fn serve<S: Subject>(self, debugger: &mut Debugger<S>) -> Result<(), ServeError<S::Error>> {
        match self {
            Peer::Unix(stream) => gdb::serve(debugger, stream),
            Peer::Tcp(stream) => gdb::serve(debugger, stream),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            let _ = std::fs::remove_file(path);
        }
    }
}
