//! Who spoilt a kernel list: gdb goes back from the crash to the write (L2).

#![forbid(unsafe_code)]

use std::process::{Command, Stdio};
use std::time::Duration;

use whole::doppel::{Doppel, Ended};
use whole::guest_cache;
use whole::images;
use whole::scratch::{Scratch, text};

const LONG: Duration = Duration::from_secs(300);

/// What the guest does: the module's symbols to the console, then the crash. The cells of a list
/// that is spoilt are walked a few seconds later.
const WORK: &str = "mount%20-t%20ext4%20-o%20ro%20/dev/vda%20/mnt;\
    echo%201%20>/proc/sys/kernel/panic_on_oops;insmod%20/mnt/culprit.ko;\
    for%20s%20in%20.text%20.data%20.bss;do%20\
    echo%20SECTION%20$s%20$(cat%20/sys/module/culprit/sections/$s);done;\
    grep%20culprit%20/proc/kallsyms%20|%20sed%20's/^/SYMBOL%20/';\
    echo%201%20>/sys/module/culprit/parameters/go;sleep%2060";

/// Records a guest whose module crashes it; what it printed.
fn record(scratch: &Scratch) -> String {
    let module = std::fs::read(guest_cache().join("culprit/culprit.ko"));
    let module = module.expect("cargo xtask guest culprit");
    let disk = images::ext4(scratch, "module.raw", "16M", &[("culprit.ko", &module)]);
    let mut run = Doppel::new(scratch, "run")
        .guest("mini", "6.1", &format!("quiet doppel.run=crash:{WORK}"))
        .args("--memory 256M --record rec")
        .disk(&disk, ",format=raw,readonly");
    run.command().current_dir(scratch.root());
    let ended = run.run(LONG);
    assert!(ended.console.contains("general protection fault"), "{}", ended.console);
    ended.console.replace('\r', "")
}

/// The words after `key` in each line.
fn said<'a>(console: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    console.lines().filter_map(move |line| line.strip_prefix(key))
}

/// What gdb says to `script`, with `doppel debug` at its other end.
fn gdb(scratch: &Scratch, debug: &str, script: &[String]) -> String {
    let mut server = Doppel::new(scratch, "debug").args(debug).args("--once --listen gdb.sock");
    server.command().current_dir(scratch.root());
    let server = server.start();
    server.wait_for("gdb can connect", LONG);
    let lines = ["set pagination off", "set confirm off", "set width 0", "target remote gdb.sock"];
    let lines = lines.map(str::to_owned).into_iter().chain(script.iter().cloned());
    let script = scratch.write("script", lines.collect::<Vec<_>>().join("\n"));
    let output = Command::new("gdb")
        .args(["-nx", "-batch", "-x", text(&script)])
        .current_dir(scratch.root())
        .stdin(Stdio::null())
        .output()
        .expect("gdb");
    let Ended { stderr, .. } = server.end(LONG);
    assert_eq!(stderr, "", "{output:?}");
    let all = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&all).into_owned()
}

#[test]
#[ignore = "needs a module that is built for it: cargo xtask test --slow"]
fn gdb_finds_who_spoilt_a_kernel_list_backwards_from_the_crash() {
    let scratch = Scratch::new();
    let console = record(&scratch);
    let section = |name: &str| {
        let found = said(&console, "SECTION ").find_map(|line| line.strip_prefix(name));
        found.unwrap_or_else(|| panic!("no section {name}: {console}")).trim().to_owned()
    };
    let (code, data, bss) = (section(".text "), section(".data "), section(".bss "));
    let map: Vec<&str> = said(&console, "SYMBOL ").collect();
    scratch.write("map", map.join("\n"));
    let module = guest_cache().join("culprit/culprit.ko");
    let script = [
        format!("add-symbol-file {} {code} -s .data {data} -s .bss {bss}", text(&module)),
        "continue".into(),
        // The crash; back to where the walk begins that ends there.
        "break visit".into(),
        "reverse-continue".into(),
        "printf \"SPOILT %#lx\\n\", all[5]->list.next".into(),
        "delete".into(),
        // Who wrote that?
        "watch -l all[5]->list.next".into(),
        "reverse-continue".into(),
        "printf \"FOUND \"".into(),
        "info symbol $pc".into(),
        "printf \"INDEX %u\\n\", at".into(),
        "backtrace 2".into(),
        "monitor where".into(),
        "delete".into(),
        // And who had it written?
        "reverse-finish".into(),
        "printf \"CALLER \"".into(),
        "info symbol $pc".into(),
        "printf \"ROUND %u\\n\", round".into(),
    ];
    let session = gdb(&scratch, "rec --symbols map", &script);
    println!("{session}");
    let has = |words: &str| assert!(session.contains(words), "no {words:?}");
    has("SPOILT 0x1abe1000000007e5");
    has("FOUND write_label");
    has("INDEX 6");
    has("(write_label+");
    has("CALLER clerk");
    has("ROUND 2021");
}
