//! gdb's remote protocol from its other end: what a debugger says, and how long the answer takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::doppel::{Doppel, Running};
use crate::scratch::Scratch;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(900);

/// A debugger connected to `doppel debug`.
#[derive(Debug)]
pub struct Rsp {
    stream: BufReader<UnixStream>,
    server: Running,
}

impl Rsp {
    /// Starts `doppel debug WORDS` and connects to it.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start(scratch: &Scratch, words: &str) -> Rsp {
        let socket = scratch.path("gdb.sock");
        let mut doppel = Doppel::new(scratch, "debug").args(words).file("--listen", &socket);
        doppel.command().current_dir(scratch.root());
        let server = doppel.start();
        server.wait_for("gdb can connect", PATIENCE);
        let stream = UnixStream::connect(&socket).expect("the socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let mut rsp = Rsp { stream: BufReader::new(stream), server };
        rsp.ask("qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+");
        rsp.ask("?");
        rsp
    }

    /// The server.
    pub fn server(&self) -> &Running {
        &self.server
    }

    /// Sends a packet; the answer.
    ///
    /// # Panics
    /// When there is none.
    pub fn ask(&mut self, packet: &str) -> String {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        let stream = self.stream.get_mut();
        stream.write_all(format!("${packet}#{sum:02x}").as_bytes()).expect("a server");
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut before = Vec::new();
        self.stream.read_until(b'$', &mut before).expect("an answer");
        let mut text = Vec::new();
        self.stream.read_until(b'#', &mut text).expect("an answer");
        assert_eq!(text.pop(), Some(b'#'), "the server went away");
        self.stream.read_exact(&mut [0; 2]).expect("a checksum");
        self.stream.get_mut().write_all(b"+").expect("a server");
        String::from_utf8_lossy(&expand(&text)).into_owned()
    }

    /// Sends a packet; the answer and how long it took.
    pub fn timed(&mut self, packet: &str) -> (String, Duration) {
        let start = Instant::now();
        let answer = self.ask(packet);
        (answer, start.elapsed())
    }

    /// A `monitor` command; what it says.
    pub fn monitor(&mut self, command: &str) -> String {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        let (mut answer, mut said) = (self.ask(&format!("qRcmd,{hex}")), Vec::new());
        while let Some(hex) = answer.strip_prefix('O').filter(|hex| *hex != "K") {
            said.extend(
                (0..hex.len() / 2)
                    .filter_map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()),
            );
            answer = self.answer();
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        // Dots are for gdb's patience alone.
        said.trim_start_matches('.').to_owned()
    }

    /// The branch count of where the machine is.
    ///
    /// # Panics
    /// When the server does not say it.
    pub fn branches(&mut self) -> u64 {
        let said = self.monitor("where");
        let word = said.split_whitespace().nth(1);
        word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no place: {said}"))
    }
}

/// Undoes the protocol's run-length encoding.
fn expand(text: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (Vec::new(), 0);
    while at < text.len() {
        match (text[at], text.get(at + 1), bytes.last().copied()) {
            (b'*', Some(count), Some(last)) => {
                bytes.extend(std::iter::repeat_n(last, usize::from(count.saturating_sub(29))));
                at += 2;
            }
            (byte, ..) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    bytes
}
