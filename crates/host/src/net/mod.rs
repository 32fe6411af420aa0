//! Networks a guest's card can be plugged into: a tap device, or a user-mode network.
//!
//! A back-end gets frames by [`NetBackend::transmit`], which never waits: what does not fit is
//! dropped and counted, as on a real link. What a guest sends at once leaves at once, after
//! [`NetBackend::flush`]. Frames are delivered by a callback on a thread of the back-end; it
//! decides what to drop when the guest is slower than the network.

mod handshake;
mod hostfwd;
mod passt;
mod repeats;
mod segment;
mod tap;
mod usernet;

pub use hostfwd::{Forward, ForwardError, Protocol};
pub use tap::Tap;
pub use usernet::{
    GATEWAY_MAC, GUEST_ADDRESS, GUEST_DNS, GUEST_GATEWAY, GUEST_PREFIX_LEN, UserNet, UserNetSpec,
};

use std::io;
use std::net::SocketAddrV4;

/// Largest frame taken or delivered: 64 KiB of payload (what segmentation offload makes), the
/// Ethernet header and a VLAN tag.
pub const FRAME_LEN_MAX: usize = 65_536 + 18;

/// Smallest frame: an Ethernet header.
pub const FRAME_LEN_MIN: usize = 14;

/// What a network tells its card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// An Ethernet frame, without FCS.
    Frame(Vec<u8>),
    /// The network is gone for good, and why; nothing comes after this.
    LinkDown(String),
}

/// Frames handed to a back-end so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounters {
    /// Frames taken over.
    pub sent: u64,
    /// Frames thrown away: the queue was full, the link down, or the length impossible.
    pub dropped: u64,
}

/// The far end of a network card's cable.
pub trait NetBackend: Send {
    /// Sends an Ethernet frame without FCS, or drops and counts it. Never waits.
    fn transmit(&mut self, frame: &[u8]);

    /// No more frames come for now: those that may still wait for others go.
    fn flush(&mut self) {}

    /// What became of the frames so far.
    fn counters(&self) -> NetCounters;
}

/// Why a network cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel has no tap devices, or hides them.
    #[error("cannot open /dev/net/tun: {0}; load the module with `modprobe tun`")]
    NoTun(#[source] io::Error),
    /// The kernel has tap devices, but this user may not use any.
    #[error(
        "no permission to open /dev/net/tun; allow it with `chmod 666 /dev/net/tun`, which gives \
         users no more than the tap devices made for them"
    )]
    TunPermission,
    /// The name cannot be that of an interface.
    #[error("{name:?} cannot be an interface name: 1 to 15 characters, no slash and no space")]
    TapName {
        /// The name given.
        name: String,
    },
    /// There is no such device.
    #[error(
        "there is no tap device {name:?}; make it with `ip tuntap add dev {name} mode tap user \
         $USER` and `ip link set {name} up`"
    )]
    TapMissing {
        /// The name given.
        name: String,
    },
    /// The device belongs to somebody else.
    #[error(
        "no permission for tap device {name:?}; make it yours with `ip tuntap add dev {name} mode \
         tap user $USER`"
    )]
    TapPermission {
        /// The name given.
        name: String,
    },
    /// Another program has the device open.
    #[error("tap device {name:?} is in use by another program; each VM needs one of its own")]
    TapInUse {
        /// The name given.
        name: String,
    },
    /// The device is not a tap device, or of another kind.
    #[error("{name:?} is not a tap device of the needed kind: {source}; make one with `ip tuntap`")]
    TapKind {
        /// The name given.
        name: String,
        /// The system's reason.
        source: io::Error,
    },
    /// passt is not there.
    #[error(
        "the user-mode network needs passt, which is not installed, or not for this user to run; \
         apt-get install passt"
    )]
    NoPasst,
    /// A port of the host is taken.
    #[error("cannot listen at {address} of the host: {source}; choose another port in hostfwd=")]
    Forward {
        /// Where.
        address: SocketAddrV4,
        /// The system's reason.
        source: io::Error,
    },
    /// passt ended, or did not answer.
    #[error("passt does not work: {what}")]
    Passt {
        /// What it said, or did not.
        what: String,
    },
    /// Some other system call failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl NetError {
    fn system(action: &'static str) -> impl Fn(io::Error) -> NetError {
        move |source| NetError::System { action, source }
    }
}
