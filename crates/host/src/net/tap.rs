//! A tap device that exists already; opening one needs no privilege if it was made for this user.

#![expect(unsafe_code, reason = "UNSAFETY: the ioctl TUNSETIFF has no safe form")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{FRAME_LEN_MAX, FRAME_LEN_MIN, NetBackend, NetCounters, NetError, NetEvent};
use crate::wake::{Wake, poll_all, readable};

/// One queue of a tap device; frames without a virtio-net header.
#[derive(Debug)]
pub struct Tap {
    device: Arc<OwnedFd>,
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
    counters: NetCounters,
}

impl Tap {
    /// Attaches to the device `name` and starts the thread that calls `on_event`.
    ///
    /// Fails, with what to do, if there is no such device, it is another user's, or in use.
    pub fn open(
        name: &str,
        on_event: impl FnMut(NetEvent) + Send + 'static,
    ) -> Result<Tap, NetError> {
        let device = Arc::new(attach(name)?);
        let wake = Arc::new(Wake::new().map_err(NetError::system("make an eventfd"))?);
        let reader = Reader {
            device: Arc::clone(&device),
            wake: Arc::clone(&wake),
            name: name.into(),
            on_event,
        };
        let thread = std::thread::Builder::new()
            .name(format!("tap {name}"))
            .spawn(move || reader.run())
            .map_err(NetError::system("start a thread"))?;
        Ok(Tap { device, wake, thread: Some(thread), counters: NetCounters::default() })
    }
}

/// Checks the name and its existence first: TUNSETIFF would make a device that is not there.
fn attach(name: &str) -> Result<OwnedFd, NetError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == '%' || c.is_whitespace() || c == '\0');
    if !valid {
        return Err(NetError::TapName { name: name.into() });
    }
    if !interface_exists(name)? {
        return Err(NetError::TapMissing { name: name.into() });
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let device =
        rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| match errno {
            Errno::ACCESS | Errno::PERM => NetError::TunPermission,
            errno => NetError::NoTun(errno.into()),
        })?;
    // IFF_VNET_HDR goes here once the card offers offloads; nothing else depends on it.
    set_interface(&device, name, libc::IFF_TAP | libc::IFF_NO_PI).map_err(|source| {
        let name = name.into();
        match source.raw_os_error() {
            Some(libc::EPERM) => NetError::TapPermission { name },
            Some(libc::EBUSY) => NetError::TapInUse { name },
            _ => NetError::TapKind { name, source },
        }
    })?;
    Ok(device)
}

/// Asks the network namespace of this thread; /sys may show another's.
fn interface_exists(name: &str) -> Result<bool, NetError> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};
    let kind = (AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC);
    let socket = socket_with(kind.0, kind.1, kind.2, None)
        .map_err(|errno| NetError::system("make a socket")(errno.into()))?;
    match netdevice::name_to_index(&socket, name) {
        Ok(_) => Ok(true),
        Err(Errno::NODEV | Errno::NXIO) => Ok(false),
        Err(errno) => Err(NetError::system("look for a network interface")(errno.into())),
    }
}

fn set_interface(device: &OwnedFd, name: &str, flags: i32) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which all zeroes is valid; the kernel reads the zero-ended
    // name, which `attach` has bounded, and the flags, and writes back no more than an ifreq.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Reader<F> {
    device: Arc<OwnedFd>,
    wake: Arc<Wake>,
    name: String,
    on_event: F,
}

impl<F: FnMut(NetEvent)> Reader<F> {
    fn run(mut self) {
        let mut buffer = vec![0; FRAME_LEN_MAX];
        loop {
            match rustix::io::read(&*self.device, &mut buffer) {
                Ok(len) if len < FRAME_LEN_MIN => {}
                Ok(len) => (self.on_event)(NetEvent::Frame(buffer[..len].to_vec())),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    if self.wait() {
                        return;
                    }
                }
                // The interface is down now; frames come again when it is up.
                Err(Errno::IO) => {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                    if self.stopped() {
                        return;
                    }
                }
                Err(errno) => {
                    let why = format!("tap device {}: {}", self.name, io::Error::from(errno));
                    tracing::error!("{why}");
                    return (self.on_event)(NetEvent::LinkDown(why));
                }
            }
        }
    }

    /// Waits for frames; true if it is time to stop.
    fn wait(&self) -> bool {
        let mut fds =
            [PollFd::new(&*self.device, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        poll_all(&mut fds).is_err() || readable(&fds[1])
    }

    fn stopped(&self) -> bool {
        let mut fds = [PollFd::new(&*self.wake, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

impl NetBackend for Tap {
    fn transmit(&mut self, frame: &[u8]) {
        let whole = (FRAME_LEN_MIN..=FRAME_LEN_MAX).contains(&frame.len());
        let sent = whole
            && loop {
                match rustix::io::write(&*self.device, frame) {
                    Ok(len) => break len == frame.len(),
                    Err(Errno::INTR) => {}
                    Err(_) => break false,
                }
            };
        if sent {
            self.counters.sent += 1;
        } else {
            self.counters.dropped += 1;
        }
    }

    fn counters(&self) -> NetCounters {
        self.counters
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.wake.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
