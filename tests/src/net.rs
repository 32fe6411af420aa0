//! The host's end of network tests: a name space with a tap device, a small HTTP server, and the
//! rule about tests that need a privilege.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

/// Set in the process that runs inside a name space.
const INSIDE: &str = "DOPPEL_TEST_INSIDE";
/// Set by people whose host gives them no privileges: such tests are left out, and say so.
pub const UNPRIVILEGED: &str = "DOPPEL_UNPRIVILEGED";
/// How long a peer may say nothing.
const SILENCE: Duration = Duration::from_secs(600);

/// Runs the test `name` again in a network name space of its own, where it is root. True in that
/// inner run, false in the outer one when the inner one has passed.
///
/// # Panics
/// When the inner run fails, or the host does not allow name spaces and [`UNPRIVILEGED`] is not
/// set to 1.
pub fn inside_namespace(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let flags = if rustix::process::geteuid().is_root() { "-nm" } else { "-rnm" };
    let probe =
        Command::new("unshare").args([flags, "ip", "tuntap", "add", "mode", "tap"]).output();
    let refusal = match &probe {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(format!("cannot start unshare: {error}")),
    };
    if let Some(refusal) = refusal {
        left_out(name, &format!("a tap device needs root or user name spaces: {refusal}"));
        return false;
    }
    let test = std::env::current_exe().expect("the path of this test");
    let output = Command::new("unshare")
        .arg(flags)
        .arg(test)
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare starts");
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    // Without what looks like a second result.
    for line in said.iter().flat_map(|text| text.lines()) {
        if !line.starts_with("test ") && !line.starts_with("running ") && !line.is_empty() {
            println!("{line}");
        }
    }
    assert!(output.status.success(), "{name} failed in its name space");
    false
}

/// A privilege is missing: fails, or says so in a line where that is accepted.
///
/// # Panics
/// Unless [`UNPRIVILEGED`] is set to 1.
pub fn left_out(name: &str, reason: &str) {
    let accepted = std::env::var(UNPRIVILEGED).is_ok_and(|value| value == "1");
    assert!(accepted, "{name}: {reason}; set {UNPRIVILEGED}=1 to leave such tests out");
    // Past the capture of test output: this is never to be overlooked.
    let _ = writeln!(std::io::stderr().lock(), "LEFT OUT: {name}: {reason}");
}

/// Makes the tap device `name` with an address of the host on it.
pub fn make_tap(name: &str, address: &str) {
    let ip = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        crate::scratch::tool("ip", &arguments)
    };
    ip("link set lo up");
    ip(&format!("tuntap add dev {name} mode tap"));
    ip(&format!("address add {address} dev {name}"));
    ip(&format!("link set {name} up"));
}

/// Serves `body` to each GET and keeps what comes by PUT, until it got one of those.
///
/// # Panics
/// When it cannot listen.
pub fn serve(address: &str, body: Vec<u8>) -> (SocketAddr, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind(address).expect("an address to listen at");
    let bound = listener.local_addr().expect("an address");
    let thread = std::thread::spawn(move || {
        loop {
            let (stream, _) = listener.accept().expect("a connection");
            if let Some(got) = answer(stream, &body) {
                return got;
            }
        }
    });
    (bound, thread)
}

/// Answers one request; what came by PUT.
fn answer(mut stream: TcpStream, body: &[u8]) -> Option<Vec<u8>> {
    stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).expect("a request") == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()
    });
    if head.starts_with("PUT ") {
        let mut got = vec![0; length.expect("a length")];
        reader.read_exact(&mut got).expect("all that was promised");
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return Some(got);
    }
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("sending");
    None
}

/// A port of the host that nobody listens at just now.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// `size` bytes that do not compress and are always the same.
pub fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}
