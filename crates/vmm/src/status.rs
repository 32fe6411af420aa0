//! What can be known about a VM from outside, while it runs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::State;

/// A VM as `inspect` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Name.
    pub name: String,
    /// Process id of the VM.
    pub pid: u32,
    /// Where it is in its life.
    pub state: State,
    /// What executes the guest's instructions.
    pub engine: String,
    /// CPU model.
    pub cpu: String,
    /// Guest memory, bytes.
    pub memory_bytes: u64,
    /// Kernel file.
    #[schema(value_type = String)]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[schema(value_type = Option<String>)]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Disks in order.
    pub disks: Vec<DiskInfo>,
    /// Network cards in order.
    pub nets: Vec<NetInfo>,
    /// Consoles.
    pub consoles: Vec<ConsoleInfo>,
    /// How virtual time passes: `live`, `seed` or `warp`.
    pub clock: String,
    /// The seed, if one was given.
    pub seed: Option<u64>,
    /// Socket of the API.
    #[schema(value_type = String)]
    pub api: PathBuf,
    /// Branches the guest has retired.
    pub branches: u64,
    /// Guest time since the start, nanoseconds.
    pub virtual_time_ns: u64,
    /// What the engine counts: translations, and why instructions were interpreted. As it was
    /// within the last half second of running.
    pub engine_counters: Vec<EngineCounter>,
}

/// A counter of the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EngineCounter {
    /// What is counted; names may change from one version to the next.
    pub name: String,
    /// How often it happened since the VM began.
    pub count: u64,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskInfo {
    /// Image file.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: String,
    /// Bytes of the disk.
    pub size_bytes: u64,
    /// Whether it refuses changes.
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetInfo {
    /// `user` or `tap=NAME`.
    pub to: String,
    /// Ethernet address.
    pub mac: String,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<String>,
}

/// A console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsoleInfo {
    /// What it is in the guest: `ttyS0`, `ttyS1`, `hvc0`.
    pub device: String,
    /// Where it leads, as written after `--console`.
    pub to: String,
    /// The pseudo-terminal, socket or file.
    #[schema(value_type = Option<String>)]
    pub place: Option<PathBuf>,
}

/// Counters of a VM. Times are nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// Branches the guest has retired.
    pub branches: u64,
    /// Guest time since the start.
    pub virtual_time_ns: u64,
    /// Host time spent executing the guest.
    pub run_ns: u64,
    /// Host time spent waiting because the guest was idle.
    pub idle_ns: u64,
    /// Quanta executed.
    pub quanta: u64,
    /// Resets the guest asked for.
    pub resets: u64,
    /// Bytes written to consoles.
    pub console_bytes: u64,
    /// Requests to disks.
    pub disk_requests: u64,
    /// Of them, those the host failed to do.
    pub disk_failures: u64,
    /// Frames the guest sent.
    pub frames_sent: u64,
    /// Of them, those the network did not take.
    pub frames_sent_dropped: u64,
    /// Frames that came in.
    pub frames_received: u64,
}

/// Counters of the engine, written by the machine thread and read by others.
#[derive(Debug, Default)]
pub(crate) struct SharedCounters {
    counters: Mutex<Vec<EngineCounter>>,
    set_at_ns: AtomicU64,
}

impl SharedCounters {
    /// Time between two updates, host nanoseconds.
    const INTERVAL_NS: u64 = 500_000_000;

    /// Takes new counts at host time `now_ns`, unless the last are recent.
    pub fn update(&self, now_ns: u64, counters: impl FnOnce() -> Vec<(String, u64)>) {
        let last = self.set_at_ns.load(Ordering::Relaxed);
        if last != 0 && now_ns.saturating_sub(last) < Self::INTERVAL_NS {
            return;
        }
        self.set_at_ns.store(now_ns, Ordering::Relaxed);
        let named = counters().into_iter().map(|(name, count)| EngineCounter { name, count });
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = named.collect();
    }

    pub fn get(&self) -> Vec<EngineCounter> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

macro_rules! shared_metrics {
    ($($field:ident),*) => {
        /// [`Metrics`] written by the machine thread and read by others.
        #[derive(Debug, Default)]
        pub(crate) struct SharedMetrics { $($field: AtomicU64),* }

        impl SharedMetrics {
            pub fn set(&self, metrics: &Metrics) {
                let Metrics { $($field),* } = metrics;
                $(self.$field.store(*$field, Ordering::Relaxed);)*
            }

            /// Each counter is right at some moment of the last quantum.
            pub fn get(&self) -> Metrics {
                Metrics { $($field: self.$field.load(Ordering::Relaxed)),* }
            }
        }
    };
}

shared_metrics!(
    branches,
    virtual_time_ns,
    run_ns,
    idle_ns,
    quanta,
    resets,
    console_bytes,
    disk_requests,
    disk_failures,
    frames_sent,
    frames_sent_dropped,
    frames_received
);

impl Default for Metrics {
    fn default() -> Metrics {
        SharedMetrics::default().get()
    }
}
