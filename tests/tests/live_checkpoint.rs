//! Checkpoints, restores and forks of the real `doppel`: what a user does and sees (C1 to C9).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use whole::doppel::{Doppel, SHORT};
use whole::images;
use whole::scratch::Scratch;
use whole::shell::{ask, json, restore, shell, verb};

fn disk(scratch: &Scratch, name: &str) -> PathBuf {
    images::create(scratch, name, "qcow2", "32M")
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn copied_checkpoint_restores_with_its_disk_and_the_vm_keeps_its_image() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "d.qcow2");
    let mut vm = shell(&scratch, "one", &image, "");
    ask(&mut vm, "X=old; echo before | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    let status = json(&scratch, "checkpoint one c");
    assert_eq!(status["phase"], "done");
    assert!(status["stun_ns"].as_u64().is_some_and(|ns| ns < 2_000_000), "{status}");
    assert!(
        !scratch.path("d.qcow2.live.qcow2").exists() && !scratch.path("d.qcow2.doppel").exists()
    );
    ask(&mut vm, "X=new; echo after | dd of=/dev/vda conv=fsync 2>/dev/null", "w2");
    images::check_qcow2(&scratch.path("c/disk0.qcow2"));
    // Nothing of it is left open, which the machine's thread would have to close.
    let open = std::fs::read_dir(format!("/proc/{}/fd", vm.id())).unwrap().flatten();
    let open = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    assert_eq!(open.filter(|path| path.starts_with(scratch.path("c"))).count(), 0);
    assert!(json(&scratch, "inspect c")["disks"][0]["policy"] == "copied");
    let mut copy = restore(&scratch, "c --name two --copy");
    ask(&mut copy, "head -1 /dev/vda; echo $X", "r");
    let said = copy.console();
    assert!(said.contains("before") && said.contains("old"), "{said}");
    // Its kernel was told.
    ask(&mut copy, "dmesg | grep -c 'virtual machine fork'", "g");
    assert!(copy.console().contains("\n1\r\n") || copy.console().contains("\r\n1\r\n"));
    copy.kill_off();
    vm.kill_off();
    images::check_qcow2(&image);
    images::check_qcow2(&scratch.path("state/doppel/disks/two/disk0.qcow2"));
    let mut again = restore(&scratch, "c --name three --eager --discard --engine interp");
    ask(&mut again, "head -1 /dev/vda; echo $X", "r");
    assert!(again.console().contains("before") && again.console().contains("old"));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn kept_parent_belongs_to_the_checkpoint_and_chains_grow_on_it() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "d.qcow2");
    let mut vm = shell(&scratch, "one", &image, "");
    ask(&mut vm, "X=a; echo first | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    json(&scratch, "checkpoint one base --keep-parent");
    let live = json(&scratch, "inspect one")["disks"][0]["path"].clone();
    assert!(live.as_str().is_some_and(|path| path.ends_with("d.1.qcow2")), "{live}");
    ask(&mut vm, "X=b; echo second | dd of=/dev/vda conv=fsync 2>/dev/null", "w2");
    let next = json(&scratch, "checkpoint one next --keep-parent --incremental-from base");
    assert!(
        next["bytes"].as_u64() < json(&scratch, "inspect base")["machine"]["memory_bytes"].as_u64()
    );
    assert_eq!(json(&scratch, "chain list next").as_array().map(Vec::len), Some(2));
    verb(&scratch, "chain verify next").expect(0);
    // Whoever names the image is told.
    let refused = Doppel::new(&scratch, "run").guest("mini", "6.1", "").disk(&image, "").run(SHORT);
    assert!(refused.stderr.contains("is kept as it is for a checkpoint"), "{}", refused.stderr);
    for (folder, text, x) in [("base", "first", "a"), ("next", "second", "b")] {
        let mut copy = restore(&scratch, &format!("{folder} --name {folder}-1 --copy --discard"));
        ask(&mut copy, "head -1 /dev/vda; echo X=$X.", "r");
        let console = copy.console();
        assert!(console.contains(text) && console.contains(&format!("X={x}.")), "{console}");
        copy.kill_off();
    }
    verb(&scratch, "chain prune next").expect(0);
    assert!(!scratch.path("base").exists());
    let mut copy = restore(&scratch, "next --name last --copy --discard");
    ask(&mut copy, "head -1 /dev/vda; echo X=$X.", "r");
    assert!(copy.console().contains("second") && copy.console().contains("X=b."));
    // The VM is not one that was forgotten over all this.
    ask(&mut vm, "echo X=$X.", "still");
    assert!(vm.console().contains("X=b."));
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn forks_run_beside_the_original_each_with_its_own_past() {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "one", &disk(&scratch, "d.qcow2"), "--net user");
    let address = "cat /sys/class/net/eth0/address";
    ask(&mut vm, &format!("X=kept; {address}"), "w");
    let report = json(&scratch, "fork one -n 3");
    assert_eq!(report["copies"].as_array().map(Vec::len), Some(3), "{report}");
    let forked = "dmesg | grep -c 'virtual machine fork'";
    assert!(ask(&mut vm, forked, "still").contains("\n0\n"), "the original is no copy");
    let mac = |name: &str| {
        let mac = json(&scratch, &format!("inspect {name}"))["nets"][0]["mac"].clone();
        mac.as_str().expect("an address").to_owned()
    };
    let mut macs = vec![mac("one")];
    for name in ["one-1", "one-2", "one-3"] {
        let mut console = Doppel::new(&scratch, "console").arg(name).typed().start();
        let said = ask(&mut console, &format!("echo $X-$X; {forked}"), "r");
        assert!(said.contains("kept-kept"), "{said}");
        assert!(said.contains("\n1\n"), "its random numbers are as the original's: {said}");
        // A running driver keeps the address it had; bound anew, it reads the copy's own.
        let said = ask(&mut console, address, "m");
        assert!(said.contains(&macs[0]), "{said}");
        let rebind = "cd /sys/bus/virtio/drivers/virtio_net; D=$(ls -d virtio*); \
                      echo $D > unbind; echo $D > bind; cd /; sleep 1; ls /sys/class/net; ";
        let said = ask(&mut console, &format!("{rebind}{address}"), "n");
        macs.push(mac(name));
        assert!(said.contains(&macs[macs.len() - 1]), "{macs:?}: {said}");
        drop(console);
        verb(&scratch, &format!("stop {name} --force")).expect(0);
    }
    macs.sort();
    macs.dedup();
    assert_eq!(macs.len(), 4, "{macs:?}");
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn copy_whose_disks_are_discarded_is_kept_and_forked_like_any_vm() {
    let scratch = Scratch::new();
    let mut vm = shell(&scratch, "one", &disk(&scratch, "d.qcow2"), "");
    ask(&mut vm, "X=a; echo first | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    json(&scratch, "fork one");
    let mut console = Doppel::new(&scratch, "console").arg("one-1").typed().start();
    ask(&mut console, "X=b; echo second | dd of=/dev/vda conv=fsync 2>/dev/null", "w");
    json(&scratch, "checkpoint one-1 copied");
    let copies = json(&scratch, "fork one-1 -n 2");
    let folder = PathBuf::from(copies["folder"].as_str().expect("a folder"));
    for name in ["one-1-1", "one-1-2"] {
        let mut console = Doppel::new(&scratch, "console").arg(name).typed().start();
        let said = ask(&mut console, "head -1 /dev/vda; echo X=$X.", "r");
        assert!(said.contains("second") && said.contains("X=b."), "{said}");
        drop(console);
        // Nothing is left of what it wrote.
        assert!(folder.join(name).join("disk0.qcow2").exists());
        verb(&scratch, &format!("stop {name} --force")).expect(0);
        let start = Instant::now();
        while folder.join(name).exists() {
            assert!(start.elapsed() < SHORT, "its overlay stays");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    drop(console);
    verb(&scratch, "stop one-1 --force").expect(0);
    vm.kill_off();
    let mut copy = restore(&scratch, "copied --name two --copy --discard");
    let said = ask(&mut copy, "head -1 /dev/vda; echo X=$X.", "r");
    assert!(said.contains("second") && said.contains("X=b."), "{said}");
    // Those who fork clean up what ended, but for images that a checkpoint keeps.
    json(&scratch, "fork two");
    assert!(!folder.exists());
    verb(&scratch, "stop two-1 --force").expect(0);
    copy.kill_off();
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn leftovers_of_killed_processes_are_gone_after_the_next_checkpoint() {
    let scratch = Scratch::new();
    let vm = shell(&scratch, "one", &disk(&scratch, "d.qcow2"), "");
    let other = shell(&scratch, "two", &disk(&scratch, "e.qcow2"), "");
    let gone = other.id();
    other.kill_off();
    let leftover = |process: u32| {
        let folder = scratch.path(&format!("c.part-{process}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("memory.img"), "half").unwrap();
        folder
    };
    let (gone, alive) = (leftover(gone), leftover(vm.id()));
    json(&scratch, "checkpoint one d");
    assert!(!gone.exists() && alive.exists());
    vm.kill_off();
}

#[test]
#[ignore = "needs guests and a release build: cargo xtask test"]
fn refusals_leave_nothing_behind() {
    let scratch = Scratch::new();
    let image = disk(&scratch, "d.qcow2");
    let vm = shell(&scratch, "one", &image, "");
    scratch.write("taken", "x");
    for (words, why) in [
        ("checkpoint one taken", "exists"),
        ("checkpoint one nowhere/c", "No such file"),
        ("checkpoint one c --incremental-from nowhere", "No such file"),
        ("checkpoint --cancel one", "no checkpoint of this VM is being taken"),
        ("checkpoint nobody c", "no VM named"),
        ("restore nowhere", "No such file"),
        ("restore .", "is not a checkpoint"),
        ("chain verify .", "is not a checkpoint"),
    ] {
        let ended = verb(&scratch, words);
        assert!(ended.code() != Some(0) && ended.stderr.contains(why), "{words}: {}", ended.stderr);
        assert_eq!(ended.stderr.lines().count(), 1, "{}", ended.stderr);
    }
    let left: Vec<_> = std::fs::read_dir(scratch.root()).unwrap().flatten().collect();
    let left: Vec<_> = left.iter().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("part-")), "{left:?}");
    assert!(
        !scratch.path("d.qcow2.doppel").exists() && !scratch.path("d.qcow2.live.qcow2").exists()
    );
    vm.kill_off();
    images::check_qcow2(&image);
}
