//! Runs of the Debian guest: a disk of its own over the built one, and jobs given on a second disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::doppel::{Doppel, Ended, Running};
use crate::harness::guest_cache;
use crate::images;
use crate::scratch::Scratch;

/// How long a Debian may take from power-on to its login prompt, on a busy host.
pub const BOOT: Duration = Duration::from_secs(1200);
/// Memory of these guests unless a test says otherwise.
const MEMORY: &str = "1G";

/// What the kernel says when a program crashes. None of those that guests run here does so on a
/// processor that is right, and scripts often go on as if nothing had happened.
const CRASHES: [&str; 3] = ["segfault at", "general protection", "trap invalid opcode"];

/// A Debian guest to be.
#[derive(Debug)]
pub struct Debian {
    /// Its folder.
    pub scratch: Scratch,
    /// Its disk: a qcow2 image over the built one.
    pub disk: PathBuf,
    /// Which kernel boots it.
    pub kernel: &'static str,
    /// As in `--memory`.
    pub memory: &'static str,
}

impl Debian {
    /// One with the given kernel, "6.1" or "backports".
    pub fn new(kernel: &'static str) -> Debian {
        let scratch = Scratch::new();
        let built = guest_cache().join("debian.qcow2");
        let disk = images::overlay(&scratch, "root.qcow2", &built, "qcow2");
        Debian { scratch, disk, kernel, memory: MEMORY }
    }

    /// `doppel run` with it; `cmdline` is added to the kernel's.
    pub fn doppel(&self, cmdline: &str) -> Doppel {
        Doppel::new(&self.scratch, "run")
            .guest("debian", self.kernel, &format!("root=/dev/vda {cmdline}"))
            .disk(&self.disk, "")
            .args(&format!("--memory {}", self.memory))
    }

    /// A disk with `files`; the guest runs the one named `job` from it, between marks of that
    /// name, then powers off if `ends`.
    pub fn with_job(&self, files: &[(&str, &[u8])], ends: bool) -> Doppel {
        self.with_job_and(files, if ends { "doppel.end=poweroff" } else { "" })
    }

    /// As [`Debian::with_job`], with more on the kernel's command line after the job.
    pub fn with_job_and(&self, files: &[(&str, &[u8])], more: &str) -> Doppel {
        self.with_disk_of_jobs(&jobs_disk(&self.scratch, files), more)
    }

    /// As [`Debian::with_job_and`], with a disk that [`jobs_disk`] made.
    pub fn with_disk_of_jobs(&self, jobs: &Path, more: &str) -> Doppel {
        let job = "doppel.run=job:mount%20-o%20ro%20/dev/vdb%20/mnt%20&&%20sh%20/mnt/job";
        self.doppel(&format!("{job} {more}")).disk(jobs, ",format=raw,readonly")
    }

    /// Checks what is left when it has powered off: the disk in order, nothing complained about.
    ///
    /// # Panics
    /// When something is wrong.
    #[track_caller]
    pub fn check(&self, ended: &Ended) {
        ended.expect(0);
        assert!(ended.console.contains("doppel login:"), "there was no login prompt");
        let crash = ended.console.lines().find(|line| CRASHES.iter().any(|it| line.contains(it)));
        assert_eq!(crash, None, "a program of the guest crashed");
        self.check_disk();
    }

    /// Checks the image and the file system in it.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn check_disk(&self) {
        images::check_qcow2(&self.disk);
        images::check_ext4(&self.scratch, &self.disk, "qcow2");
    }
}

/// A disk with `files`. No two are the same to their last byte.
pub fn jobs_disk(scratch: &Scratch, files: &[(&str, &[u8])]) -> PathBuf {
    let size: usize = files.iter().map(|(_, bytes)| bytes.len()).sum();
    images::ext4(scratch, "jobs.raw", &format!("{}M", 16 + 2 * (size >> 20)), files)
}

/// Logs in on the console and leaves a shell whose prompt is `DOPPEL# `.
pub fn log_in(vm: &mut Running) {
    vm.wait_for("doppel login:", BOOT);
    vm.type_text("root\n");
    vm.wait_for("Password:", BOOT);
    vm.type_text("doppel\n");
    vm.wait_for("root@doppel:", BOOT);
    vm.type_text("PS1=DOPPEL'# '\n");
    vm.wait_for("DOPPEL# ", BOOT);
}
