//! The user-mode network with a real passt: hand-made frames against its answers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use host::net::{Forward, GATEWAY_MAC, NetBackend, NetError, NetEvent, UserNet, UserNetSpec};

const TIME_MAX: Duration = Duration::from_secs(10);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const GUEST: [u8; 4] = [10, 0, 2, 15];
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

fn start(forwards: &[String]) -> (UserNet, Receiver<NetEvent>) {
    let (sender, events) = channel();
    let forwards = forwards.iter().map(|text| text.parse::<Forward>().unwrap()).collect();
    let spec = UserNetSpec { forwards, ..UserNetSpec::default() };
    let net = UserNet::start(&spec, move |event| _ = sender.send(event));
    (net.unwrap_or_else(|error| panic!("{error}")), events)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn frame_where(events: &Receiver<NetEvent>, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left).expect("the frame in time") {
            NetEvent::Frame(frame) if wanted(&frame) => return frame,
            NetEvent::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes: Vec<u8> = parts.concat();
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An IPv4 packet in an Ethernet frame from the guest to the gateway's hardware address.
fn ipv4(protocol: u8, from: [u8; 4], to: [u8; 4], mut payload: Vec<u8>) -> Vec<u8> {
    let len = (payload.len() as u16).to_be_bytes();
    let at = if protocol == 6 { 16 } else { 6 };
    let sum = checksum(&[&from, &to, &[0, protocol], &len, &payload]);
    payload[at..at + 2].copy_from_slice(&sum);
    let total = (20 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0];
    header.extend(from);
    header.extend(to);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum);
    let destination = if to == [255; 4] { [0xff; 6] } else { GATEWAY_MAC };
    [&destination[..], &MAC, &[8, 0], &header, &payload].concat()
}

fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16), data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len() as u16;
    let header = [from.1.to_be_bytes(), to.1.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat();
    ipv4(17, from.0, to.0, [&header, data].concat())
}

/// Connection state of the guest's side; enough of TCP for a quiet, lossless wire.
struct Tcp {
    ports: (u16, u16),
    sequence: u32,
    acknowledged: u32,
}

impl Tcp {
    fn segment(&mut self, flags: u8, data: &[u8]) -> Vec<u8> {
        let mut header = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        header.extend(self.sequence.to_be_bytes());
        header.extend(self.acknowledged.to_be_bytes());
        header.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self.sequence += data.len() as u32 + u32::from(flags & 3 != 0);
        ipv4(6, GUEST, GATEWAY, [&header, data].concat())
    }

    /// Notes what a segment from the other side says; gives its data.
    fn heard(&mut self, frame: &[u8]) -> Vec<u8> {
        let tcp = &frame[34..14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]))];
        let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
        let data = tcp[usize::from(tcp[12] >> 4) * 4..].to_vec();
        self.acknowledged = sequence + data.len() as u32 + u32::from(tcp[13] & 3 != 0);
        data
    }
}

fn is_tcp(frame: &[u8], to_port: u16, flags: u8) -> bool {
    frame.len() >= 54
        && frame[12..14] == [8, 0]
        && frame[23] == 6
        && frame[36..38] == to_port.to_be_bytes()
        && frame[47] & flags == flags
}

/// Tells passt the guest's hardware address, as any guest does by asking for the gateway.
fn introduce(net: &mut UserNet, events: &Receiver<NetEvent>) {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(GUEST);
    frame.extend([0; 6]);
    frame.extend(GATEWAY);
    send(net, &frame);
    let answer = frame_where(events, |frame| frame[12..14] == [8, 6] && frame[21] == 2);
    assert_eq!((&answer[..6], &answer[22..28]), (&MAC[..], &GATEWAY_MAC[..]));
    assert_eq!(answer[28..32], GATEWAY);
}

fn send(net: &mut UserNet, frame: &[u8]) {
    net.transmit(frame);
    net.flush();
}

#[test]
fn arp_and_dhcp_answer_with_the_documented_addresses() {
    let (mut net, events) = start(&[]);
    introduce(&mut net, &events);
    let mut request = vec![1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef];
    request.resize(28, 0);
    request.extend(MAC);
    request.resize(236, 0);
    request.extend([99, 130, 83, 99, 53, 1, 1, 55, 4, 1, 3, 6, 51, 255]);
    request.resize(300, 0);
    send(&mut net, &udp(([0; 4], 68), ([255; 4], 67), &request));
    let offer = frame_where(&events, |frame| {
        frame.len() > 282 && frame[12..14] == [8, 0] && frame[36..38] == [0, 68]
    });
    let dhcp = &offer[42..];
    assert_eq!((dhcp[0], &dhcp[4..8]), (2, &[0xde, 0xad, 0xbe, 0xef][..]));
    assert_eq!(dhcp[16..20], GUEST);
    let option = |wanted: u8| {
        let mut rest = &dhcp[240..];
        while let [code, len, tail @ ..] = rest {
            let (value, after) = tail.split_at(usize::from(*len));
            if *code == wanted {
                return value.to_vec();
            }
            rest = after;
        }
        panic!("no option {wanted}")
    };
    assert_eq!(option(53), [2]);
    assert_eq!(option(1), [255, 255, 255, 0]);
    assert_eq!(option(3), GATEWAY);
    assert_eq!(net.counters().dropped, 0);
}

#[test]
fn a_forwarded_connection_carries_data_both_ways() {
    let port = free_port();
    let (mut net, events) = start(&[format!("tcp:127.0.0.1:{port}-:22")]);
    introduce(&mut net, &events);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(TIME_MAX)).unwrap();
    let syn = frame_where(&events, |frame| is_tcp(frame, 22, 2));
    assert_eq!((&syn[26..30], &syn[30..34]), (&GATEWAY[..], &GUEST[..]));
    let from_port = u16::from_be_bytes([syn[34], syn[35]]);
    let mut tcp = Tcp { ports: (22, from_port), sequence: 1000, acknowledged: 0 };
    tcp.heard(&syn);
    send(&mut net, &tcp.segment(0x12, b""));
    client.write_all(b"to the guest").unwrap();
    let data =
        frame_where(&events, |frame| is_tcp(frame, 22, 0x10) && frame.ends_with(b"to the guest"));
    assert_eq!(tcp.heard(&data), b"to the guest");
    send(&mut net, &tcp.segment(0x18, b"to the host"));
    let mut answer = [0; 11];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"to the host");
}

#[test]
fn a_connection_reaches_a_guest_that_has_been_silent() {
    let (port, (sender, events)) = (free_port(), channel());
    let forwards = vec![format!("tcp:127.0.0.1:{port}-:22").parse().unwrap()];
    let spec = UserNetSpec { forwards, guest_mac: MAC, ..UserNetSpec::default() };
    let _net = UserNet::start(&spec, move |event| _ = sender.send(event)).unwrap();
    let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let syn = frame_where(&events, |frame| is_tcp(frame, 22, 2));
    assert_eq!(&syn[..6], &MAC);
}

#[test]
fn the_guest_reaches_a_server_of_the_host_at_the_gateway() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let (mut net, events) = start(&[]);
    introduce(&mut net, &events);
    let mut tcp = Tcp { ports: (40000, port), sequence: 5, acknowledged: 0 };
    send(&mut net, &tcp.segment(0x02, b""));
    let answer = frame_where(&events, |frame| is_tcp(frame, 40000, 0x12));
    tcp.heard(&answer);
    send(&mut net, &tcp.segment(0x10, b""));
    send(&mut net, &tcp.segment(0x18, b"GET /"));
    let (mut accepted, _) = server.accept().unwrap();
    let mut seen = [0; 5];
    accepted.set_read_timeout(Some(TIME_MAX)).unwrap();
    accepted.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"GET /");
}

#[test]
fn a_forwarded_datagram_arrives_and_its_answer_returns() {
    let port = free_port();
    let (mut net, events) = start(&[format!("udp:127.0.0.1:{port}-:53")]);
    introduce(&mut net, &events);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(TIME_MAX)).unwrap();
    client.send_to(b"question", ("127.0.0.1", port)).unwrap();
    let question = frame_where(&events, |frame| frame.ends_with(b"question"));
    assert_eq!(question[36..38], [0, 53]);
    let from: [u8; 4] = question[26..30].try_into().unwrap();
    let from_port = u16::from_be_bytes([question[34], question[35]]);
    send(&mut net, &udp((GUEST, 53), (from, from_port), b"answer"));
    let mut answer = [0; 100];
    let (len, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(&answer[..len], b"answer");
    assert_eq!(from, SocketAddr::from(([127, 0, 0, 1], port)));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let forwards = vec![format!("tcp:{port}-:22").parse().unwrap()];
    let spec = UserNetSpec { forwards, ..UserNetSpec::default() };
    let error = UserNet::start(&spec, |_| ()).unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("hostfwd"), "{error}");
}

#[test]
fn missing_or_broken_passt_is_explained() {
    let with = |program: &str| {
        let spec = UserNetSpec { program: program.into(), ..UserNetSpec::default() };
        UserNet::start(&spec, |_| ()).unwrap_err()
    };
    let missing = with("passt-that-is-not-there");
    assert!(missing.to_string().contains("apt-get install passt"), "{missing}");
    assert!(matches!(with("false"), NetError::Passt { .. }));
    let said = with("/bin/ls").to_string();
    assert!(said.contains("unrecognized option"), "{said}");
}

#[test]
fn network_that_is_not_waited_for_carries_what_was_sent_before_it_was_up() {
    let (sender, events) = channel();
    let spec = UserNetSpec { wait: false, ..UserNetSpec::default() };
    let mut net = UserNet::start(&spec, move |event| _ = sender.send(event)).unwrap();
    // passt is hardly a process yet.
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_read_timeout(Some(TIME_MAX)).unwrap();
    send(&mut net, &udp((GUEST, 4000), (GATEWAY, host.local_addr().unwrap().port()), b"early"));
    let mut bytes = [0; 16];
    let (len, from) = host.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"early");
    host.send_to(b"late", from).unwrap();
    frame_where(&events, |frame| frame.ends_with(b"late"));
    drop(net);
    // One that does not come up takes the link down, and says why.
    let (sender, events) = channel();
    let spec = UserNetSpec { program: "false".into(), wait: false, ..UserNetSpec::default() };
    let net = UserNet::start(&spec, move |event| _ = sender.send(event)).unwrap();
    let NetEvent::LinkDown(why) = events.recv_timeout(TIME_MAX).unwrap() else { panic!("a frame") };
    assert!(why.contains("passt"), "{why}");
    drop(net);
}

#[test]
fn passt_ends_with_the_network_and_the_link_with_passt() {
    let (net, events) = start(&[]);
    let id = net.passt_id();
    let process = format!("/proc/{id}");
    assert!(std::fs::exists(&process).unwrap());
    drop(net);
    assert!(!std::fs::exists(&process).unwrap(), "killed and reaped");
    assert_eq!(events.try_iter().count(), 0);

    let (mut net, events) = start(&[]);
    let id = rustix::process::Pid::from_raw(net.passt_id() as i32).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    let NetEvent::LinkDown(why) = events.recv_timeout(TIME_MAX).unwrap() else { panic!("a frame") };
    assert!(why.contains("signal: 9"), "{why}");
    send(&mut net, &[0; 60]);
    assert_eq!(net.counters().dropped, 1);
    assert_eq!(events.recv_timeout(TIME_MAX), Err(RecvTimeoutError::Disconnected));
}

/// What is typed at the terminal (Ctrl-C) goes to doppel, which lets the guest power off; until
/// then the guest keeps its network.
#[test]
fn signals_of_the_terminal_do_not_reach_passt() {
    let (net, _events) = start(&[]);
    let group = |id| rustix::process::getpgid(rustix::process::Pid::from_raw(id)).unwrap();
    assert_ne!(group(net.passt_id() as i32), group(0));
}

#[test]
fn an_ordinary_user_needs_nothing_more() {
    if std::env::var_os("USERNET_TEST_USER").is_some() {
        let (mut net, events) = start(&[format!("tcp:{}-:22", free_port())]);
        return introduce(&mut net, &events);
    }
    let copy = std::env::temp_dir().join(format!("doppel-usernet-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let mut command = Command::new(&copy);
    command.args(["--exact", "an_ordinary_user_needs_nothing_more"]);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.env("USERNET_TEST_USER", "1").output().unwrap();
    std::fs::remove_file(copy).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
