//! A large file through the guest's nginx in each direction, with checksums.

#![forbid(unsafe_code)]

use std::fs;
use std::time::{Duration, Instant};

use whole::debian::{BOOT, Debian};
use whole::doppel::output_of;
use whole::net::free_port;
use whole::scratch::{sha256, text, tool};
use whole::soak::length;

const HOUR: Duration = Duration::from_secs(3600);

/// The word after `key` on the console.
fn said(console: &str, key: &str) -> String {
    let line = console.lines().find_map(|line| line.trim_end().strip_prefix(key));
    line.unwrap_or_else(|| panic!("no {key:?} in {console}")).to_owned()
}

#[test]
#[ignore = "long: cargo xtask soak"]
fn nginx_serves_and_takes_a_large_file() {
    let size = length("bytes", 50_000_000, 1_000_000_000);
    let debian = Debian::new("6.1");
    let job = format!("BYTES={size}\n{}", include_str!("../soak/nginx.sh"));
    let store =
        debian.scratch.sparse("store.raw", (2 * size).next_multiple_of(1 << 20) + (256 << 20));
    let port = free_port();
    let vm = debian
        .with_job(&[("job", job.as_bytes())], true)
        .disk(&store, ",format=raw")
        .args(&format!("--net user,hostfwd=tcp:127.0.0.1:{port}-:8080"))
        .start();
    vm.wait_for("SERVING", BOOT + HOUR);
    let url = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    let rate = |start: Instant| size as f64 / 1e6 / start.elapsed().as_secs_f64();

    let got = debian.scratch.path("got");
    let start = Instant::now();
    tool("curl", &["-sSf", "-o", text(&got), &url("file")]);
    let from_guest = rate(start);
    assert_eq!(sha256(&got), said(&vm.console(), "given "), "guest to host");

    let mine = debian.scratch.path("mine");
    tool("openssl", &["rand", "-out", text(&mine), &size.to_string()]);
    let start = Instant::now();
    tool("curl", &["-sSf", "-T", text(&mine), &url("in/file")]);
    let to_guest = rate(start);
    let done = debian.scratch.write("done", b"done");
    tool("curl", &["-sSf", "-T", text(&done), &url("in/done")]);
    let ended = vm.end(BOOT + HOUR);
    debian.check(&ended);
    let output = output_of(&ended.console, "job");
    assert_eq!(sha256(&mine), said(&output, "taken "), "host to guest");
    assert_eq!(fs::metadata(&got).expect("the file").len(), size);
    println!("{size} bytes: {from_guest:.1} MB/s from the guest, {to_guest:.1} MB/s to it");
}
