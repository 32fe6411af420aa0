//! passt as a child process: started on a socket of ours, watched, killed and reaped.
//!
//! It needs no privilege; started by root it becomes nobody by itself. It jails itself (empty root,
//! seccomp), and ends when our end of the socket closes, even if we are killed.

#![expect(unsafe_code, reason = "UNSAFETY: one system call between fork and exec")]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::usernet::{
    GATEWAY_MAC, GUEST_ADDRESS, GUEST_DNS, GUEST_GATEWAY, GUEST_PREFIX_LEN, UserNetSpec,
};
use super::{Forward, NetError, Protocol};

/// What passt may have on its way to us: as much as the largest TCP window of a Linux guest. It
/// throws away what its socket does not take at once, and then sends a whole window again. The
/// host's limit (`net.core.wmem_max`) may allow less.
const SEND_BUFFER: usize = 8 << 20;
/// Number of our socket in the child.
const CHILD_FD: i32 = 3;
/// Lines of its complaints that are kept.
const COMPLAINTS_MAX: usize = 20;

/// A running passt.
#[derive(Debug)]
pub(super) struct Passt {
    child: Child,
    complaints: Arc<Mutex<VecDeque<String>>>,
    listener: Option<JoinHandle<()>>,
}

impl Passt {
    /// Starts passt; gives it and our end of the socket.
    ///
    /// Fails if passt is not installed or a port is taken.
    pub fn start(spec: &UserNetSpec) -> Result<(Passt, OwnedFd), NetError> {
        for forward in &spec.forwards {
            check_free(forward)?;
        }
        let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(kind.0, kind.1, kind.2, None)
            .map_err(|errno| NetError::system("make a socket pair")(errno.into()))?;
        // Less is allowed, too.
        let _ = set_socket_send_buffer_size(&theirs, SEND_BUFFER);
        let mut command = Command::new(&spec.program);
        command
            .args(arguments(spec))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // What the terminal sends to its foreground group is for us: while the guest powers
            // off, it still has its network.
            .process_group(0);
        let fd = theirs.as_raw_fd();
        // SAFETY: dup2 and fcntl are async-signal-safe; `theirs` lives until after the spawn.
        unsafe {
            command.pre_exec(move || {
                let result = if fd == CHILD_FD {
                    libc::fcntl(fd, libc::F_SETFD, 0)
                } else {
                    libc::dup2(fd, CHILD_FD)
                };
                if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            // The latter also when a folder of PATH may not be searched and no other has it.
            ErrorKind::NotFound | ErrorKind::PermissionDenied => NetError::NoPasst,
            _ => NetError::System { action: "start passt", source: error },
        })?;
        let complaints = Arc::new(Mutex::new(VecDeque::new()));
        let listener = child.stderr.take().map(|pipe| listen(pipe, Arc::clone(&complaints)));
        Ok((Passt { child, complaints, listener }, ours))
    }

    /// How it ended, with its last words, if it has; waits up to `patience` for that.
    pub fn ended(&mut self, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) => return None,
                Err(error) => return Some(error.to_string()),
            }
        };
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let words: Vec<&str> = complaints.iter().map(String::as_str).collect();
        let said =
            if words.is_empty() { "nothing".into() } else { format!("{:?}", words.join("; ")) };
        Some(format!("it ended ({status}) saying {said}"))
    }

    /// Process id, for messages and tests.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

/// passt's own message about a taken port does not say which one.
fn check_free(forward: &Forward) -> Result<(), NetError> {
    let tried = match forward.protocol {
        Protocol::Tcp => TcpListener::bind(forward.host).map(drop),
        Protocol::Udp => UdpSocket::bind(forward.host).map(drop),
    };
    tried.map_err(|source| NetError::Forward { address: forward.host, source })
}

fn arguments(spec: &UserNetSpec) -> Vec<String> {
    let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let mut arguments: Vec<String> =
        ["--foreground", "--quiet", "--stderr", "--ipv4-only"].map(String::from).into();
    let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    add("--fd", CHILD_FD.to_string());
    add("--address", GUEST_ADDRESS.to_string());
    add("--netmask", GUEST_PREFIX_LEN.to_string());
    add("--gateway", GUEST_GATEWAY.to_string());
    add("--mac-addr", mac);
    add("--dns-forward", GUEST_DNS.to_string());
    for (option, protocol) in [("--tcp-ports", Protocol::Tcp), ("--udp-ports", Protocol::Udp)] {
        let mut none = true;
        for forward in spec.forwards.iter().filter(|forward| forward.protocol == protocol) {
            let (ip, port) = (forward.host.ip(), forward.host.port());
            add(option, format!("{ip}/{port}:{}", forward.guest_port));
            none = false;
        }
        // Left out, --udp-ports would follow --tcp-ports.
        if none {
            add(option, "none".into());
        }
    }
    if !spec.reach_host {
        arguments.push("--no-map-gw".into());
    }
    arguments
}

/// Keeps the last lines passt writes; reading them keeps its pipe from filling.
fn listen(
    pipe: impl io::Read + Send + 'static,
    complaints: Arc<Mutex<VecDeque<String>>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(pipe);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut limited = io::Read::take(&mut lines, 1024);
            match limited.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let text = String::from_utf8_lossy(&line).trim().to_owned();
            let noise = text.is_empty() || text.contains("syslog") || text.starts_with("Don't run");
            if noise {
                continue;
            }
            tracing::debug!("passt: {text}");
            let mut complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
            if complaints.len() == COMPLAINTS_MAX {
                complaints.pop_front();
            }
            complaints.push_back(text);
        }
    })
}
