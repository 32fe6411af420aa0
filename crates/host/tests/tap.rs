//! A real tap device in a network namespace of its own. As root or where user namespaces are
//! allowed; elsewhere these tests fail and say so.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use host::net::{NetBackend, NetError, NetEvent, Tap};

const TIME_MAX: Duration = Duration::from_secs(10);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Whether tests with a tap device are to be left out here; each says so, and so does
/// `cargo xtask test`. Never where they can run.
fn is_left_out(name: &str, flags: &str) -> bool {
    let wanted = std::env::var("DOPPEL_UNPRIVILEGED").is_ok_and(|value| value == "1");
    let probe = ["ip", "tuntap", "add", "mode", "tap"];
    let can = || Command::new("unshare").arg(flags).args(probe).status();
    let left_out = wanted && !can().is_ok_and(|status| status.success());
    if left_out {
        eprintln!("LEFT OUT: {name}: a tap device needs root or user name spaces");
    }
    left_out
}

/// Runs the test `name` again inside a new network namespace; true in the inner run.
fn inside_namespace(name: &str) -> bool {
    if std::env::var_os("TAP_TEST_INSIDE").is_some() {
        return true;
    }
    let root = rustix::process::geteuid().is_root();
    let flags = if root { "-nm" } else { "-rnm" };
    if is_left_out(name, flags) {
        return false;
    }
    let output = Command::new("unshare")
        .arg(flags)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("TAP_TEST_INSIDE", "1")
        .output()
        .expect("this test needs unshare: apt-get install util-linux");
    assert!(
        output.status.success(),
        "in a network namespace (needs root, or user namespaces for ordinary users): {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    false
}

fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    let output = command
        .args(arguments.split(' '))
        .output()
        .expect("this test needs ip: apt-get install iproute2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {said}");
}

fn open(name: &str) -> (Tap, Receiver<NetEvent>) {
    let (sender, events) = channel();
    (Tap::open(name, move |event| _ = sender.send(event)).unwrap(), events)
}

fn refused(name: &str) -> NetError {
    Tap::open(name, |_| ()).expect_err("a refusal")
}

/// "Who has `target`? Tell `sender`."
fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(MAC);
    frame.extend(sender);
    frame.extend([0; 6]);
    frame.extend(target);
    frame
}

fn frame_where(events: &Receiver<NetEvent>, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        match events.recv_timeout(TIME_MAX).expect("a frame in time") {
            NetEvent::Frame(frame) if wanted(&frame) => return frame,
            NetEvent::Frame(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn frames_go_both_ways() {
    if !inside_namespace("frames_go_both_ways") {
        return;
    }
    ip("tuntap add dev t0 mode tap");
    ip("addr add 192.0.2.1/24 dev t0");
    ip("link set t0 up");
    let (mut tap, events) = open("t0");
    // The kernel begins to send on a device some time after we attach to it, so ask again.
    let mut asked = 0;
    let answer = loop {
        tap.transmit(&arp([192, 0, 2, 2], [192, 0, 2, 1]));
        asked += 1;
        assert!(asked < 100, "no answer");
        std::thread::sleep(Duration::from_millis(100));
        let is_answer = |frame: &Vec<u8>| frame[12..14] == [8, 6] && frame[21] == 2;
        let mut frames = events.try_iter().map(|event| match event {
            NetEvent::Frame(frame) => frame,
            NetEvent::LinkDown(why) => panic!("{why}"),
        });
        if let Some(answer) = frames.find(is_answer) {
            break answer;
        }
    };
    assert_eq!(answer[..6], MAC);
    assert_eq!(answer[28..32], [192, 0, 2, 1]);
    // The answer taught the kernel who we are: a datagram needs no further question.
    let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.send_to(b"hello over tap", "192.0.2.2:7").unwrap();
    let datagram = frame_where(&events, |frame| frame.ends_with(b"hello over tap"));
    assert_eq!(datagram[..6], MAC);
    tap.transmit(&[0; 5]);
    tap.transmit(&vec![0; 1 << 20]);
    assert_eq!((tap.counters().sent, tap.counters().dropped), (asked, 2));
    for _ in 0..10_000 {
        tap.transmit(&arp([192, 0, 2, 2], [192, 0, 2, 9]));
    }
    assert_eq!(tap.counters().sent + tap.counters().dropped, asked + 10_002);
    drop(tap);
    drop(open("t0"));
}

#[test]
fn a_device_that_goes_away_takes_the_link_down() {
    if !inside_namespace("a_device_that_goes_away_takes_the_link_down") {
        return;
    }
    ip("tuntap add dev t0 mode tap");
    let (mut tap, events) = open("t0");
    ip("link set t0 up");
    ip("link set t0 down");
    tap.transmit(&arp([192, 0, 2, 2], [192, 0, 2, 1]));
    assert_eq!(tap.counters().dropped, 1);
    ip("link set t0 up");
    tap.transmit(&arp([192, 0, 2, 2], [192, 0, 2, 1]));
    assert_eq!(tap.counters().sent, 1);
    ip("link del t0");
    loop {
        match events.recv_timeout(TIME_MAX).unwrap() {
            NetEvent::LinkDown(why) => return assert!(why.contains("t0"), "{why}"),
            NetEvent::Frame(_) => {}
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    if !inside_namespace("refusals_say_what_to_do") {
        return;
    }
    let missing = refused("t9").to_string();
    assert!(missing.contains("\"t9\"") && missing.contains("ip tuntap add"), "{missing}");
    assert!(!std::fs::exists("/sys/class/net/t9").unwrap(), "asking must not make a device");
    for name in ["", "much-too-long-a-name", "a/b", "a b", "t%d", ".."] {
        assert!(matches!(refused(name), NetError::TapName { .. }), "{name:?}");
    }
    assert!(matches!(refused("lo"), NetError::TapKind { .. }));
    ip("tuntap add dev t0 mode tap");
    let first = open("t0");
    assert!(matches!(refused("t0"), NetError::TapInUse { .. }));
    drop(first);
}

/// Distributions let everybody open /dev/net/tun; containers often do not. A node of our own,
/// mounted over it in this mount namespace, makes the test independent of that.
fn open_tun_to_all() {
    let node = std::env::temp_dir().join(format!("doppel-tun-{}", std::process::id()));
    let node = node.to_str().unwrap();
    let steps =
        format!("mknod -m 666 {node} c 10 200 && mount --bind {node} /dev/net/tun && rm {node}");
    let output = Command::new("sh").args(["-c", &steps]).output().unwrap();
    assert!(output.status.success(), "{steps}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_device_of_another_user_is_refused() {
    if let Ok(expected) = std::env::var("TAP_TEST_USER") {
        let opened = Tap::open("t0", |_| ());
        match expected.as_str() {
            "stranger" => assert!(matches!(opened, Err(NetError::TapPermission { .. }))),
            _ => drop(opened.unwrap()),
        }
        return;
    }
    if !inside_namespace("a_device_of_another_user_is_refused") {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    let all_users = status.split_whitespace().nth(2) == Some("4294967295");
    assert!(all_users, "this test needs real root: it changes to two other users");
    open_tun_to_all();
    ip("tuntap add dev t0 mode tap user 65534");
    let copy = std::env::temp_dir().join(format!("doppel-tap-{}", std::process::id()));
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    for (user, expected) in [(65534, "owner"), (65533, "stranger")] {
        let status = Command::new(&copy)
            .args(["--exact", "a_device_of_another_user_is_refused"])
            .env("TAP_TEST_USER", expected)
            .uid(user)
            .gid(user)
            .status()
            .unwrap();
        assert!(status.success(), "{expected}");
    }
    std::fs::remove_file(copy).unwrap();
}
