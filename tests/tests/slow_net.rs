//! Fifty megabytes in both directions over a tap device and over the user-mode network.

#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use whole::debian::{BOOT, Debian};
use whole::doppel::{Running, output_of};
use whole::net::{free_port, inside_namespace, make_tap, noise, serve};
use whole::scratch::{Scratch, sha256, tool};

const SIZE: usize = 50 << 20;

/// Fetches from the host and sends to it, checking both; `$URL` is the host's server.
const EXCHANGE: &str = r#"
curl -sS --retry 5 --retry-connrefused -o /var/tmp/got "$URL/file"
echo "got $(sha256sum /var/tmp/got | cut -d' ' -f1)"
openssl rand -out /var/tmp/mine 52428800
echo "mine $(sha256sum /var/tmp/mine | cut -d' ' -f1)"
echo SENDING
curl -sS -H Expect: -T /var/tmp/mine "$URL/mine" && echo sent
"#;

/// What the guest said after `key`.
fn said<'a>(output: &'a str, key: &str) -> &'a str {
    let line = output.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key:?} in {output}")).trim()
}

/// The sum of bytes, by the host's own tool.
fn sum(scratch: &Scratch, bytes: &[u8]) -> String {
    sha256(&scratch.write("sum", bytes))
}

/// MB/s of [`SIZE`] bytes since `start`.
fn rate(start: Instant) -> f64 {
    SIZE as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Lets the guest exchange files with a server of ours at `address`.
fn exchanges(what: &str, debian: &Debian, vm: &Running, body: &[u8], server: Server) {
    vm.wait_for("DOPPEL-BEGIN job", BOOT);
    let start = Instant::now();
    vm.wait_for("got ", BOOT);
    let fetched = rate(start);
    vm.wait_for("SENDING", BOOT);
    let start = Instant::now();
    vm.wait_for("DOPPEL-END job", BOOT);
    let sent = rate(start);
    let output = output_of(&vm.console(), "job");
    assert_eq!(said(&output, "got "), sum(&debian.scratch, body), "{what}: host to guest");
    let mine = server.join().expect("the server");
    assert_eq!(mine.len(), SIZE);
    assert_eq!(said(&output, "mine "), sum(&debian.scratch, &mine), "{what}: guest to host");
    println!("{what}: {fetched:.1} MB/s to the guest, {sent:.1} MB/s from it");
}

type Server = std::thread::JoinHandle<Vec<u8>>;

#[test]
#[ignore = "slow, root or user name spaces: cargo xtask test --slow"]
fn tap_carries_fifty_megabytes_each_way() {
    if !inside_namespace("tap_carries_fifty_megabytes_each_way") {
        return;
    }
    make_tap("t0", "10.9.0.1/24");
    let debian = Debian::new("6.1");
    let body = noise(SIZE, 1);
    let (_, server) = serve("10.9.0.1:8000", body.clone());
    let job = format!(
        "systemctl stop systemd-networkd.socket systemd-networkd\n\
         dev=$(ls /sys/class/net | grep -v lo)\n\
         ip link set $dev up && ip address add 10.9.0.2/24 dev $dev\n\
         URL=http://10.9.0.1:8000\n{EXCHANGE}"
    );
    let doppel = debian.with_job(&[("job", job.as_bytes())], true).args("--net tap=t0 --seed 1");
    let vm = doppel.start();
    exchanges("tap", &debian, &vm, &body, server);
    debian.check(&vm.end(BOOT));
}

/// In the guest: takes a file from a connection, then gives one to another.
const LISTEN: &str = r#"
import hashlib, random, socket
server = socket.create_server(("", 9000))
print("LISTENING", flush=True)
peer, _ = server.accept()
digest = hashlib.sha256()
while data := peer.recv(1 << 16):
    digest.update(data)
print("taken", digest.hexdigest(), flush=True)
peer.close()
peer, _ = server.accept()
data = random.Random(1).randbytes(50 << 20)
print("given", hashlib.sha256(data).hexdigest(), flush=True)
peer.sendall(data)
peer.close()
"#;

#[test]
#[ignore = "slow: cargo xtask test --slow"]
fn user_network_carries_fifty_megabytes_each_way() {
    let debian = Debian::new("6.1");
    let body = noise(SIZE, 2);
    let (address, server) = serve("127.0.0.1:0", body.clone());
    let job = format!(
        "until ip route | grep -q default; do sleep 0.5; done\n\
         URL=http://10.0.2.2:{}\n{EXCHANGE}\n",
        address.port()
    );
    let (web, port) = (free_port(), free_port());
    // The forwarded ports after the exchange, in a job of their own.
    let listen = "doppel.run=listen:python3%20/mnt/listen.py doppel.end=poweroff";
    let doppel = debian
        .with_job_and(&[("job", job.as_bytes()), ("listen.py", LISTEN.as_bytes())], listen)
        .args(&format!("--net user,hostfwd=tcp:{port}-:9000,hostfwd=tcp:{web}-:80 --seed 1"));
    let vm = doppel.start();
    exchanges("user", &debian, &vm, &body, server);
    vm.wait_for("LISTENING", BOOT);
    let page = tool("curl", &["-sS", &format!("http://127.0.0.1:{web}/")]);
    assert!(page.contains("nginx"), "{page}");
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("the forwarded port");
    let start = Instant::now();
    let mut peer = connect();
    peer.write_all(&body).and_then(|()| peer.shutdown(Shutdown::Write)).expect("sending");
    vm.wait_for("taken ", BOOT);
    let to_guest = rate(start);
    let mut given = Vec::new();
    let mut peer = connect();
    vm.wait_for("given ", BOOT);
    let start = Instant::now();
    peer.read_to_end(&mut given).expect("receiving");
    println!("hostfwd: {to_guest:.1} MB/s to the guest, {:.1} MB/s from it", rate(start));
    let ended = vm.end(BOOT);
    debian.check(&ended);
    let output = ended.output_of("listen");
    assert_eq!(said(&output, "taken "), sum(&debian.scratch, &body));
    assert_eq!(given.len(), SIZE);
    assert_eq!(said(&output, "given "), sum(&debian.scratch, &given));
}
