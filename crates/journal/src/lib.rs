//! The one door for what is not deterministic: inputs enter the machine only as [`Input`], at an
//! execution point; outputs leave it only as [`Output`].
//!
//! Live run, replay and backup differ in where an `Input` comes from and when an `Output` may
//! leave; nothing else about the machine differs (mechanisms L5, F12).

#![forbid(unsafe_code)]

mod log;

use minicbor::{Decode, Encode};
use types::VirtualTime;

pub use log::{Check, Entry, LogError, LogReader, LogWriter, VERSION, What};

/// What entered the machine from outside (mechanism L5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The host clock went elsewhere than was foreseen: here virtual time goes forward by
    /// `advance_ns`, and from here by `rate_millins` thousandths of a nanosecond per branch.
    ClockAnchor {
        /// What virtual time goes forward by, ns.
        advance_ns: u64,
        /// Thousandths of a nanosecond per branch, 1 or more.
        rate_millins: u64,
    },
    /// Bytes typed at serial port or console `port`.
    Console {
        /// Which console (see `ConsolePort`).
        port: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A frame arrived for network card `nic`.
    NetReceive {
        /// Index of the card.
        nic: u32,
        /// Ethernet frame without FCS, preceded by nothing.
        frame: Vec<u8>,
    },
    /// Somebody pressed the power button.
    PowerButton,
    /// The network link of card `nic` went up or down.
    NetLink {
        /// Index of the card.
        nic: u32,
        /// Whether the link is up.
        up: bool,
    },
    /// The machine is a copy of one that goes on elsewhere, or goes on from its own past: the guest
    /// is told by a new VM generation id, and renews its random numbers.
    Generation {
        /// The id.
        id: [u8; 16],
    },
    /// Network card `nic` has another Ethernet address from now on, which its driver sees when it
    /// looks next.
    NetAddress {
        /// Index of the card.
        nic: u32,
        /// The address.
        mac: [u8; 6],
    },
}

/// What leaves the machine for the outside world. It is never logged, only checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes written to serial port or console `port`.
    Console {
        /// Which console.
        port: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A frame sent by network card `nic`.
    NetTransmit {
        /// Index of the card.
        nic: u32,
        /// Ethernet frame without FCS.
        frame: Vec<u8>,
    },
    /// A request to disk `disk`; its completion enters the machine at a point computed from the
    /// request's own, so it needs no journal.
    Disk {
        /// Index of the disk.
        disk: u32,
        /// The request.
        request: DiskRequest,
    },
}

/// A disk request with private buffers (mechanism F12: bytes enter guest memory on delivery).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// Unique among requests in flight of one disk.
    pub id: u64,
    /// What to do.
    pub operation: DiskOperation,
}

/// The operation of a [`DiskRequest`]; offsets and lengths are bytes, multiples of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOperation {
    /// Read `len` bytes at `offset`.
    Read {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes to read.
        len: u32,
    },
    /// Write `data` at `offset`.
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// Make everything written so far durable.
    Flush,
    /// The range need not be kept; reads of it may return anything stable.
    Discard {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes from now on.
    WriteZeroes {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What became of a [`DiskRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCompletion {
    /// The request's id.
    pub id: u64,
    /// Data of a read (empty otherwise), or the fact that the host failed to do it.
    pub result: Result<Vec<u8>, DiskFailed>,
}

/// The host could not carry out a request; the guest sees an I/O error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFailed;

/// Wall-clock time of the guest's CMOS clock at virtual time zero, nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WallClock(#[n(0)] pub u64);

impl WallClock {
    /// Wall-clock nanoseconds since 1970 at virtual time `at`.
    pub const fn at(self, at: VirtualTime) -> u64 {
        self.0.saturating_add(at.0)
    }
}
