//! The user-mode network: a guest reaches what the user's own programs reach, without privileges,
//! through passt. IPv4 only.
//!
//! | what the guest sees | |
//! |---|---|
//! | its address (by DHCP, or set by hand) | 10.0.2.15/24 |
//! | gateway | 10.0.2.2; connections to it reach the host's 127.0.0.1 if `reach_host` |
//! | name server | 10.0.2.3, passed on to the host's first; DHCP names the host's own |
//! | connections from the host's loopback come from | 10.0.2.2 |
//!
//! The wire is a stream socket: each frame after its length, 4 bytes, big-endian.

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::handshake::final_ack;
use super::passt::Passt;
use super::repeats::Repeats;
use super::{FRAME_LEN_MAX, FRAME_LEN_MIN, Forward, NetBackend, NetCounters, NetError, NetEvent};
use crate::wake::{Wake, poll_all, readable};

/// The guest's address.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Bits of the guest's network.
pub const GUEST_PREFIX_LEN: u8 = 24;
/// The guest's gateway.
pub const GUEST_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// A name server that is always there for the guest.
pub const GUEST_DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The gateway's Ethernet address.
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];

/// Bytes of frames that wait for passt; what comes on top is dropped.
const QUEUE_BYTES_MAX: usize = 1 << 20;
/// Answers of the network itself that wait for its thread.
const ANSWERS_MAX: usize = 256;
/// How long passt may take to come up.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// A user-mode network to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserNetSpec {
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<Forward>,
    /// Whether the guest reaches servers on the host's loopback at the gateway's address.
    pub reach_host: bool,
    /// Ethernet address of the guest's card, to which connections lead before the guest has sent
    /// anything: one that was restored may wait for them in silence.
    pub guest_mac: [u8; 6],
    /// The passt program; looked up in PATH if it has no slash.
    pub program: OsString,
    /// Whether to wait until passt answers. If not, what the guest sends meanwhile waits for it,
    /// and should it not come up, the link goes down.
    pub wait: bool,
}

impl Default for UserNetSpec {
    /// No forwarding, a guest that sends before it is reached, the host reachable, `passt` from
    /// PATH, waited for.
    fn default() -> UserNetSpec {
        let forwards = Vec::new();
        let guest_mac = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x0f];
        UserNetSpec { forwards, reach_host: true, guest_mac, program: "passt".into(), wait: true }
    }
}

/// A running user-mode network. Dropping it ends passt.
#[derive(Debug)]
pub struct UserNet {
    link: Arc<Link>,
    thread: Option<JoinHandle<()>>,
    counters: NetCounters,
    repeats: Repeats,
    passt_id: u32,
}

#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    wake: Wake,
    outgoing: Mutex<Outgoing>,
}

#[derive(Debug, Default)]
struct Outgoing {
    /// The rest of a frame, and frames behind it.
    bytes: Vec<u8>,
    /// The socket did not take all of them.
    waits: bool,
    /// Frames that the network itself answers the guest with.
    for_guest: Vec<Vec<u8>>,
    down: bool,
    stopping: bool,
}

impl UserNet {
    /// Starts passt and the thread that calls `on_event`; returns when passt answers, if that is to
    /// be waited for.
    ///
    /// Fails if passt is not installed, cannot run, or a forwarded port is taken.
    pub fn start(
        spec: &UserNetSpec,
        on_event: impl FnMut(NetEvent) + Send + 'static,
    ) -> Result<UserNet, NetError> {
        let (mut passt, socket) = Passt::start(spec)?;
        let passt_id = passt.id();
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|errno| NetError::system("set up a socket")(errno.into()))?;
        let wake = Wake::new().map_err(NetError::system("make an eventfd"))?;
        let link = Arc::new(Link { socket, wake, outgoing: Mutex::default() });
        let mut reader = Reader { link: Arc::clone(&link), incoming: Vec::new(), on_event };
        // Ahead of what the guest sends, so that the answer is the first frame that comes.
        reader.link.queue_frame(&arp_request(spec.guest_mac));
        reader.link.send_queued();
        if spec.wait {
            reader.greet(&mut passt)?;
        }
        let greeted = spec.wait;
        let thread = std::thread::Builder::new()
            .name("usernet".into())
            .spawn(move || reader.run(passt, greeted))
            .map_err(NetError::system("start a thread"))?;
        let (counters, repeats) = (NetCounters::default(), Repeats::default());
        Ok(UserNet { link, thread: Some(thread), counters, repeats, passt_id })
    }

    /// passt's process id.
    pub fn passt_id(&self) -> u32 {
        self.passt_id
    }
}

impl NetBackend for UserNet {
    fn transmit(&mut self, frame: &[u8]) {
        let whole = (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&frame.len());
        if self.repeats.swallow(frame, Instant::now()) {
            self.counters.sent += 1;
        } else if whole && self.link.queue_frame(frame) {
            self.counters.sent += 1;
            self.link.answer(frame);
        } else {
            self.counters.dropped += 1;
        }
    }

    fn flush(&mut self) {
        self.link.send_queued();
    }

    fn counters(&self) -> NetCounters {
        self.counters
    }
}

impl Drop for UserNet {
    fn drop(&mut self) {
        self.link.lock().stopping = true;
        self.link.wake.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame; false if there is no room or no link.
    fn queue_frame(&self, frame: &[u8]) -> bool {
        let mut outgoing = self.lock();
        if outgoing.down || outgoing.bytes.len() + frame.len() > QUEUE_BYTES_MAX {
            return false;
        }
        outgoing.bytes.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        outgoing.bytes.extend_from_slice(frame);
        true
    }

    /// Sends what the socket takes of what is queued, all at once: of segments that come one by one
    /// passt makes small writes, the second of which waits for the acknowledgement of the first
    /// (Nagle's algorithm, 40 ms where the peer delays that).
    fn send_queued(&self) {
        let mut outgoing = self.lock();
        // Where something was left over, the thread knows of it.
        if outgoing.bytes.is_empty() || outgoing.waits {
            return;
        }
        self.push(&mut outgoing);
        if outgoing.waits {
            self.wake.wake();
        }
    }

    /// Gives the guest the acknowledgement that passt may withhold.
    fn answer(&self, frame: &[u8]) {
        if let Some(ack) = final_ack(frame) {
            let mut outgoing = self.lock();
            if outgoing.for_guest.len() < ANSWERS_MAX {
                outgoing.for_guest.push(ack);
                self.wake.wake();
            }
        }
    }

    /// Sends as much as the socket takes. An error shows up at the reader, too.
    fn push(&self, outgoing: &mut Outgoing) {
        let mut done = 0;
        while done < outgoing.bytes.len() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match send(&self.socket, &outgoing.bytes[done..], flags) {
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    outgoing.down = true;
                    break;
                }
            }
        }
        outgoing.bytes.drain(..done);
        outgoing.waits = !outgoing.bytes.is_empty();
    }
}

/// What the reader found out while waiting.
enum Next {
    Read,
    Stop,
}

struct Reader<F> {
    link: Arc<Link>,
    /// Bytes of frames that are not complete.
    incoming: Vec<u8>,
    on_event: F,
}

impl<F: FnMut(NetEvent)> Reader<F> {
    /// Waits until passt says who has the gateway's address, as it was asked; its ports are bound
    /// by then. Ends early if nobody wants the network any more.
    fn greet(&mut self, passt: &mut Passt) -> Result<(), NetError> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            if self.link.lock().stopping {
                return Ok(());
            }
            let ended = match self.receive() {
                Ok(true) => false,
                Ok(false) | Err(_) => true,
            };
            if let Some(Ok(answer)) = first_frame(&self.incoming) {
                let len = answer.len();
                self.incoming.drain(..4 + len);
                return Ok(());
            }
            let patience = if ended { Duration::from_secs(1) } else { Duration::from_millis(2) };
            if let Some(what) = passt.ended(patience) {
                return Err(NetError::Passt { what });
            }
            if ended || Instant::now() > deadline {
                let what = "it runs but does not answer; try passt --foreground by hand".into();
                return Err(NetError::Passt { what });
            }
        }
    }

    fn run(mut self, mut passt: Passt, greeted: bool) {
        let greeting = if greeted { Ok(()) } else { self.greet(&mut passt) };
        let why = loop {
            if let Err(error) = &greeting {
                break error.to_string();
            }
            if let Err(what) = self.deliver() {
                break what;
            }
            match self.wait() {
                Ok(Next::Stop) => return,
                Ok(Next::Read) => {}
                Err(error) => break error.to_string(),
            }
            let answers = std::mem::take(&mut self.link.lock().for_guest);
            answers.into_iter().for_each(|frame| (self.on_event)(NetEvent::Frame(frame)));
            match self.receive() {
                Ok(true) => {}
                Ok(false) => break "it closed its socket".into(),
                Err(error) => break error.to_string(),
            }
        };
        self.link.lock().down = true;
        let ended = passt.ended(Duration::from_secs(1)).unwrap_or_default();
        let reasons = [why, ended].into_iter().filter(|reason| !reason.is_empty());
        let reasons = reasons.collect::<Vec<_>>().join("; ");
        let why = format!("the user-mode network is down: passt is gone: {reasons}");
        tracing::error!("{why}");
        (self.on_event)(NetEvent::LinkDown(why));
    }

    /// Hands on every complete frame; the rest waits for more bytes.
    fn deliver(&mut self) -> Result<(), String> {
        let mut done = 0;
        while let Some(frame) = first_frame(&self.incoming[done..]) {
            let frame = frame?;
            done += 4 + frame.len();
            (self.on_event)(NetEvent::Frame(frame.to_vec()));
        }
        self.incoming.drain(..done);
        Ok(())
    }

    /// Waits for bytes; sends what was left over when the socket has room.
    fn wait(&self) -> io::Result<Next> {
        loop {
            let backlog = self.link.lock().waits;
            let events = if backlog { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let mut fds = [
                PollFd::new(&self.link.socket, events),
                PollFd::new(&self.link.wake, PollFlags::IN),
            ];
            poll_all(&mut fds)?;
            self.link.wake.clear();
            let mut outgoing = self.link.lock();
            if outgoing.stopping {
                return Ok(Next::Stop);
            }
            if outgoing.waits {
                self.link.push(&mut outgoing);
            }
            if readable(&fds[0]) || !outgoing.for_guest.is_empty() {
                return Ok(Next::Read);
            }
        }
    }

    /// Takes in what is there; false at the end of the stream.
    fn receive(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 64 << 10];
        match recv(&self.link.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(false),
            Ok((count, _)) => {
                self.incoming.extend_from_slice(&buffer[..count]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The first frame of the stream if it is complete, or an error if its length is impossible: the
/// stream is lost then.
fn first_frame(stream: &[u8]) -> Option<Result<&[u8], String>> {
    let (len, rest) = stream.split_first_chunk::<4>()?;
    let len = u32::from_be_bytes(*len) as usize;
    if !(FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&len) {
        return Some(Err(format!("(it announced a frame of {len} bytes) ")));
    }
    rest.get(..len).map(Ok)
}

/// "Who has 10.0.2.2? Tell 10.0.2.15", from the guest's address (RFC 826).
fn arp_request(sender: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&sender);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&sender);
    frame.extend_from_slice(&GUEST_ADDRESS.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&GUEST_GATEWAY.octets());
    frame
}
