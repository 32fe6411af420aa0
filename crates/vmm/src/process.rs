//! One VM from its specification to its end, with everything around the machine thread.
//!
//! What is made last is undone first: API, machine thread, consoles (terminal), networks, the
//! claim on the name, signals, disks.

use std::sync::Arc;

use host::console::{Console, ConsoleSpec};
use host::net::{NetBackend, Tap, UserNet, UserNetSpec};
use host::runtime_dir::Listener;
use host::signals::{Signal, SignalWatch};
use replay::OutputDigest;

use crate::api::{Api, Server};
use crate::control::Control;
use crate::debugging::DebugServer;
use crate::driver::{Driver, Feed, Plug};
use crate::hash_log::HashLog;
use crate::inbox::{Inbox, PORTS};
use crate::keeping::{self, Cadence, Flight, Keeper, KeeperParts, LiveDisk, VmKept};
use crate::lifecycle::Lifecycle;
use crate::name::default_name;
use crate::ports::Ports;
use crate::prepare::{Prepared, check_flags, mac_text, net_text, pace, prepare};
use crate::recording::{self, LogFeed, Recorded, Recording};
use crate::registry::Entry;
use crate::status::{SharedCounters, SharedMetrics};
use crate::{
    ConsoleInfo, DiskInfo, End, Metrics, NetInfo, NetSpec, State, VmError, VmInfo, VmSpec,
};

/// The signals that ask a VM to end.
const SIGNALS: [Signal; 3] = [Signal::Terminate, Signal::Interrupt, Signal::HangUp];

/// Runs a VM to its end on this process; `on_ready` is told what came to be before the guest's
/// first instruction, and may call it off.
///
/// # Errors
/// [`VmError`] when it cannot be had, `on_ready` calls it off, or the host fails it. Nothing is
/// left behind.
pub fn run(
    spec: &VmSpec,
    on_ready: impl FnOnce(&VmInfo) -> Result<(), VmError>,
) -> Result<End, VmError> {
    if let Some(restore) = &spec.restore {
        let prepared = keeping::prepare(spec, restore)?;
        return launch(spec, prepared, Start::Live(None), on_ready);
    }
    let Some(dir) = &spec.record else {
        return launch(spec, prepare(spec)?, Start::Live(None), on_ready);
    };
    // What is wrong with the flags is better said before a folder is made.
    check_flags(spec)?;
    let (spec, new) = recording::set_up(spec, dir)?;
    let mut prepared = prepare(&spec)?;
    let recording = new.start(&mut prepared.machine)?;
    launch(&spec, prepared, Start::Live(Some(recording)), on_ready)
}

/// Replays a recorded machine on this process, and runs it live from there if the feed says so.
pub(crate) fn replay(
    spec: &VmSpec,
    prepared: Prepared,
    feed: LogFeed,
    on_ready: impl FnOnce(&VmInfo) -> Result<(), VmError>,
) -> Result<End, VmError> {
    launch(spec, prepared, Start::Replay(Box::new(feed)), on_ready)
}

/// Where a machine's inputs come from at first.
enum Start {
    Live(Option<(Recording, Recorded)>),
    Replay(Box<LogFeed>),
}

fn launch(
    spec: &VmSpec,
    prepared: Prepared,
    start: Start,
    on_ready: impl FnOnce(&VmInfo) -> Result<(), VmError>,
) -> Result<End, VmError> {
    let Prepared { machine, engine, boot, disks, disk_infos, macs, .. } = prepared;
    let (requests, generation) = (prepared.requests, prepared.generation);
    let (restored_from, mut discard) = (prepared.restored_from, prepared.discard);
    let mut ports = Ports { disks, ..Ports::default() };
    let live_disks = live_disks(&ports, &disk_infos);
    let inbox = Arc::new(Inbox::new(machine.spec().nics.len()));
    // Dropped before the networks, whose threads may be waiting for room.
    let _closer = Closer(Arc::clone(&inbox));
    let control = Control::new(Arc::clone(&inbox), spec.grace);
    let _signals = watch_signals(&control)?;
    let name = spec.name.clone().unwrap_or_else(default_name);
    let entry = Entry::claim(&name)?;
    let listeners = listen(spec, &entry)?;
    let (nets, plug_control) = (spec.nets.clone(), control.clone());
    // A copy's driver uses the original's address until it is bound again.
    let addresses: Vec<_> = machine.spec().nics.iter().map(|nic| nic.mac).collect();
    // A restored guest has had its network for long: it need not wait for passt to come up.
    let wait = spec.restore.is_none();
    let plug: Plug = Box::new(move || open_nets(&nets, &addresses, &plug_control, wait));
    let (feed, plug, recording) = match start {
        Start::Live(recording) => {
            ports.nets = plug()?;
            ports.digest = recording.is_some().then(OutputDigest::default);
            (Feed::Live, None, recording)
        }
        Start::Replay(feed) => {
            ports.digest = Some(feed.digest());
            (Feed::Log(feed), Some(plug), None)
        }
    };
    for (disk, request) in requests {
        if let Some(disk) = ports.disks.get_mut(disk as usize) {
            disk.redo(request);
        }
    }
    let hash_log = HashLog::open(&spec.checks, machine.branches())?;
    let consoles = Consoles::open(spec, &entry, &control, &inbox)?;
    ports.consoles = consoles.writers();

    let info = VmInfo {
        disks: disk_infos,
        nets: net_infos(spec, &macs),
        consoles: consoles.infos.clone(),
        api: listeners[listeners.len() - 1].path().to_owned(),
        ..basic_info(spec, name)
    };
    let (lifecycle, shared_metrics) =
        (Arc::new(Lifecycle::new()), Arc::new(SharedMetrics::default()));
    let shared_counters = Arc::new(SharedCounters::default());
    let (recording, recorded) = recording.unzip();
    let keeper = Arc::new(Keeper::new(KeeperParts {
        pages: machine.ram().pages(),
        inbox: Arc::clone(&inbox),
        kept: VmKept::of(spec, &info.name),
        boot: boot.sources(),
        disks: live_disks,
        restored: restored_from.map(|id| (id, machine.ram().first_epoch())),
        recorded,
    }));
    let debug = Arc::new(DebugServer::new(&inbox, &keeper, &info.name));
    let api = Api {
        debug,
        info: info.clone(),
        keeper: Arc::clone(&keeper),
        control,
        lifecycle: Arc::clone(&lifecycle),
        metrics: Arc::clone(&shared_metrics),
        counters: Arc::clone(&shared_counters),
    };
    let _server = Server::start(listeners, api)?;
    on_ready(&info)?;
    let pace = pace(spec, machine.now());
    let driver = Driver {
        machine,
        engine,
        ports,
        inbox,
        lifecycle,
        shared_metrics,
        shared_counters,
        pace,
        feed,
        plug,
        recording,
        held: None,
        hash_log,
        boot,
        no_reboot: spec.no_reboot,
        metrics: Metrics::default(),
        starts_paused: spec.restore.as_ref().is_some_and(|restore| restore.paused),
        at_point: true,
        generation,
    };
    let _cadence = spec.checkpoint_every.map(|every| Cadence::start(&keeper, every)).transpose()?;
    let _flight = match spec.flight {
        Some(flight) => {
            keeper.set_flight(Flight::new(flight, &info.name)?);
            Some(Cadence::flight(&keeper, &flight)?)
        }
        None => None,
    };
    let result = drive(driver, &keeper);
    discard.follow(&keeper.disks());
    drop(consoles);
    result
}

/// Runs the machine thread and waits for its end, then closes the disks.
fn drive(mut driver: Driver, keeper: &Arc<Keeper>) -> Result<End, VmError> {
    let for_thread = Arc::clone(keeper);
    let lifecycle = Arc::clone(&driver.lifecycle);
    // Also when the thread panics.
    let _closer = Closer(Arc::clone(&driver.inbox));
    let thread = std::thread::Builder::new()
        .name("machine".into())
        .spawn(move || {
            let ended = driver.run();
            driver.inbox.close();
            for_thread.close();
            let closed = driver.ports.close_disks();
            ended.and_then(|end| closed.map(|()| end))
        })
        .map_err(|source| VmError::Thread { what: "machine", source })?;
    let result = thread.join().unwrap_or(Err(VmError::Panicked("machine")));
    lifecycle.end(result.as_ref().ok().copied());
    result
}

/// The disks as a checkpoint finds them.
fn live_disks(ports: &Ports, infos: &[DiskInfo]) -> Vec<LiveDisk> {
    let disks = ports.disks.iter().zip(infos);
    let live = disks.map(|(port, info)| LiveDisk {
        path: std::path::absolute(&info.path).unwrap_or_else(|_| info.path.clone()),
        format: disk::Format::named(&info.format).unwrap_or(disk::Format::Raw),
        size: info.size_bytes,
        read_only: info.read_only,
        handle: port.handle(),
    });
    live.collect()
}

/// Closes the inbox on every way out.
struct Closer(Arc<Inbox>);

impl Drop for Closer {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn watch_signals(control: &Control) -> Result<SignalWatch, VmError> {
    let control = control.clone();
    Ok(host::signals::watch(&SIGNALS, move |_| control.signal())?)
}

/// The sockets of the API; the one to be told is last.
fn listen(spec: &VmSpec, entry: &Entry) -> Result<Vec<Listener>, VmError> {
    let mut listeners = vec![Listener::bind(&entry.api())?];
    if let Some(path) = &spec.api {
        listeners.push(Listener::bind(path).map_err(VmError::Api)?);
    }
    Ok(listeners)
}

fn open_nets(
    nets: &[NetSpec],
    addresses: &[[u8; 6]],
    control: &Control,
    wait: bool,
) -> Result<Vec<Box<dyn NetBackend>>, VmError> {
    let open = |(card, (net, &guest_mac)): (usize, (&NetSpec, &[u8; 6]))| {
        let control = control.clone();
        let on_event = move |event| control.net_event(card, event);
        Ok(match &net.kind {
            crate::NetKind::Tap(name) => {
                Box::new(Tap::open(name, on_event)?) as Box<dyn NetBackend>
            }
            crate::NetKind::User(forwards) => {
                let forwards = forwards.clone();
                let spec = UserNetSpec { forwards, guest_mac, wait, ..UserNetSpec::default() };
                Box::new(UserNet::start(&spec, on_event)?)
            }
        })
    };
    nets.iter().zip(addresses).enumerate().map(open).collect::<Result<_, _>>().map_err(VmError::Net)
}

/// Open consoles: where the user wants them, and the one that `doppel console` attaches to.
struct Consoles {
    /// Dropped first: nobody types any more, so that the threads of consoles can end.
    _closer: Closer,
    open: Vec<(usize, Console)>,
    infos: Vec<ConsoleInfo>,
}

impl Consoles {
    /// Standard input and output come last: whatever can fail has not by then.
    fn open(
        spec: &VmSpec,
        entry: &Entry,
        control: &Control,
        inbox: &Arc<Inbox>,
    ) -> Result<Consoles, VmError> {
        let wanted = [
            ("ttyS0", "--console", Some(&spec.console)),
            ("ttyS1", "--serial2", Some(&spec.serial2)),
            ("hvc0", "--hvc", spec.hvc.as_ref()),
        ];
        let mut wanted: Vec<_> = (0..PORTS).zip(wanted).collect();
        wanted.sort_by_key(|(_, (_, _, to))| *to == Some(&ConsoleSpec::Stdio));
        let _closer = Closer(Arc::clone(inbox));
        let mut consoles = Consoles { _closer, open: Vec::new(), infos: Vec::new() };
        // The attached one shows the first serial port, or the virtio console in its place.
        let attached = if spec.console == ConsoleSpec::None && spec.hvc.is_some() { 2 } else { 0 };
        consoles.add(attached, "console", &ConsoleSpec::Unix(entry.console()), control)?;
        for (port, (device, flag, to)) in wanted {
            let Some(to) = to else { continue };
            let place = consoles.add(port, flag, to, control)?;
            let (device, to) = (device.into(), to.to_string());
            consoles.infos.push(ConsoleInfo { device, to, place });
        }
        consoles.infos.sort_by(|a, b| a.device.cmp(&b.device));
        consoles.infos.sort_by_key(|info| info.device == "hvc0");
        Ok(consoles)
    }

    fn add(
        &mut self,
        port: usize,
        flag: &'static str,
        to: &ConsoleSpec,
        control: &Control,
    ) -> Result<Option<std::path::PathBuf>, VmError> {
        let handle = control.clone();
        let console = Console::open(to, move |event| handle.console_event(port, event))
            .map_err(|source| VmError::Console { flag, source })?;
        control.watch_writer(console.writer());
        let place = console.place().map(Into::into);
        self.open.push((port, console));
        Ok(place)
    }

    fn writers(&self) -> [Vec<host::console::ConsoleWriter>; PORTS] {
        let mut writers: [Vec<_>; PORTS] = Default::default();
        for (port, console) in &self.open {
            writers[*port].push(console.writer());
        }
        writers
    }
}

fn net_infos(spec: &VmSpec, macs: &[[u8; 6]]) -> Vec<NetInfo> {
    let infos = spec.nets.iter().zip(macs).map(|(net, mac)| {
        let (to, forwards) = net_text(&net.kind);
        NetInfo { to, mac: mac_text(*mac), forwards }
    });
    infos.collect()
}

fn basic_info(spec: &VmSpec, name: String) -> VmInfo {
    VmInfo {
        name,
        pid: std::process::id(),
        state: State::Starting,
        engine: spec.engine.name().into(),
        cpu: spec.model.name().into(),
        memory_bytes: spec.memory_size,
        kernel: spec.kernel.clone(),
        initrd: spec.initrd.clone(),
        cmdline: spec.cmdline.clone(),
        disks: Vec::new(),
        nets: Vec::new(),
        consoles: Vec::new(),
        clock: spec.clock_name().into(),
        seed: spec.seed,
        api: std::path::PathBuf::new(),
        branches: 0,
        virtual_time_ns: 0,
        engine_counters: Vec::new(),
    }
}
