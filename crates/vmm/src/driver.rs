//! The machine thread: runs the machine quantum by quantum and lets the outside in between.
//!
//! Everything that depends on the host enters here: which inputs come after which quantum, and in
//! a live run the anchors of the clock. With a seed there are no anchors, so that without input
//! the run depends on nothing of the host; with `--warp` idle time is skipped besides. In a replay
//! nothing enters from the host: a log says what comes where.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::{BootSpec, PlatformTables};
use cpu::Engine;
use devices::PowerEvent;
use host::clock::monotonic_ns;
use host::net::NetBackend;
use journal::Input;
use machine::{Machine, MachineSpec, Stop};
use replay::OutputDigest;
use tokio::sync::oneshot;
use types::VirtualTime;

use crate::boot_files::BootFiles;
use crate::clock::{Anchor, LiveClock, QUANTUM_NS, is_whole, quantum_branches};
use crate::debugging::{Held, Order};
use crate::hash_log::HashLog;
use crate::inbox::{Inbox, PORTS, Refusal, Request, Verb, Woken};
use crate::keeping::{CaptureOrder, CapturedVm, Mark, Marked};
use crate::lifecycle::Lifecycle;
use crate::ports::Ports;
use crate::prepare::copied_mac;
use crate::recording::{LogFeed, Note, Recording, Stretch};
use crate::status::{SharedCounters, SharedMetrics};
use crate::{End, Metrics, RecordingError, State, VmError};

/// Bytes let in per quantum at the virtio console, which buffers 64 KiB and tells no room.
const HVC_BYTES_PER_QUANTUM: usize = 256;
/// Number of the virtio console among the ports.
const HVC: usize = machine::console_port::VIRTIO as usize;
/// Before a sleep of this many nanoseconds what is recorded leaves memory.
const FLUSH_SLEEP_NS: u64 = 100_000_000;
/// Longest single sleep; a deadline beyond it is only slept towards.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// How virtual time passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As the host's clock.
    Live(LiveClock),
    /// By branches alone; idle time takes as long as it would.
    Seeded,
    /// By branches alone; idle time takes no time.
    Warp,
}

/// Where inputs come from.
pub(crate) enum Feed {
    /// Consoles, networks and the clock of this host.
    Live,
    /// A log.
    Log(Box<LogFeed>),
}

/// What makes a replayed machine's networks once it is live.
pub(crate) type Plug = Box<dyn FnOnce() -> Result<Vec<Box<dyn NetBackend>>, VmError> + Send>;

/// Everything the machine thread owns.
pub(crate) struct Driver {
    pub machine: Machine,
    pub engine: Box<dyn Engine>,
    pub ports: Ports,
    pub inbox: Arc<Inbox>,
    pub lifecycle: Arc<Lifecycle>,
    pub shared_metrics: Arc<SharedMetrics>,
    pub shared_counters: Arc<SharedCounters>,
    pub pace: Pace,
    pub feed: Feed,
    /// Done when the feed becomes live.
    pub plug: Option<Plug>,
    pub recording: Option<Recording>,
    /// A debugger has the machine.
    pub held: Option<Held>,
    pub hash_log: HashLog,
    pub boot: BootFiles,
    pub no_reboot: bool,
    pub metrics: Metrics,
    /// The guest stands still until it is told to go on.
    pub starts_paused: bool,
    /// The machine stands where a replay can stop, too.
    pub at_point: bool,
    /// A new generation for the guest, before anything else.
    pub generation: Option<[u8; 16]>,
}

impl Driver {
    /// Runs the machine to its end.
    ///
    /// # Errors
    /// When the host fails in a way the guest cannot be told; disks are still to be closed.
    pub fn run(&mut self) -> Result<End, VmError> {
        self.lifecycle.enter(State::Running);
        if let Some(id) = self.generation.take() {
            self.renew(id);
        }
        if self.starts_paused {
            self.publish();
            self.lifecycle.enter(State::Paused);
        }
        let end = self.run_quanta()?;
        if let Some(mut recording) = self.recording.take() {
            recording.finish(&mut self.machine, self.ports.digest());
        }
        self.hash_log.finish(&mut self.machine)?;
        self.publish();
        Ok(end)
    }

    /// Makes the machine another one than that it is a copy of.
    fn renew(&mut self, id: [u8; 16]) {
        self.machine.inject(&mut self.ports, Input::Generation { id });
        for nic in 0..self.machine.spec().nics.len() {
            let mac = copied_mac(&id, nic as u64);
            self.machine.inject(&mut self.ports, Input::NetAddress { nic: nic as u32, mac });
        }
        for nic in self.ports.nets.len()..self.machine.spec().nics.len() {
            self.machine.inject(&mut self.ports, Input::NetLink { nic: nic as u32, up: false });
        }
    }

    /// Keeps the machine as it is now (mechanism C3), and the disks by the overlays they get.
    fn capture(&mut self, order: CaptureOrder) {
        let CaptureOrder { guest, overlays, before, mark, reply } = order;
        let start_ns = monotonic_ns();
        let captured = checkpoint::capture(&mut self.machine, &mut self.ports, guest.0);
        let reads = |index: usize| captured.reads.get(&(index as u32)).cloned().unwrap_or_default();
        let switched = overlays
            .into_iter()
            .map(|(index, overlay)| (index, self.ports.disks[index].switch(overlay, reads(index))));
        let switched: Vec<_> = switched.collect();
        let marked = mark.map_or_else(|| Ok(Marked::default()), |mark| self.mark(mark));
        let before = before.into_iter().filter(|_| marked.is_ok()).map(|(index, before)| {
            // Those that were switched have told.
            let told = switched.iter().any(|(disk, _)| *disk == index);
            let reads = if told { Vec::new() } else { reads(index) };
            (index, self.ports.disks[index].preserve(before, reads))
        });
        let moments = before.collect();
        let stun_ns = monotonic_ns() - start_ns;
        // Whoever asked may have gone.
        let _ = reply.send(CapturedVm { captured, switched, stun_ns, marked, moments });
    }

    /// What the present point is to a recording.
    fn mark(&mut self, mark: Mark) -> Result<Marked, RecordingError> {
        if !matches!(self.feed, Feed::Live) {
            return Err(RecordingError::Asked("what is being replayed is recorded already".into()));
        }
        let refuse = |why: &str| Err(RecordingError::Asked(why.into()));
        if !self.at_point && !matches!(mark, Mark::Begin(_)) {
            return refuse("the guest was in the middle of one long instruction");
        }
        match mark {
            Mark::Begin(file) => {
                self.recording = Some(Recording::begin(&mut self.machine, file)?);
                self.ports.digest = Some(OutputDigest::default());
                Ok(Marked::default())
            }
            Mark::Along(number) => {
                let Some(recording) = &mut self.recording else {
                    return refuse("the VM is not being recorded");
                };
                let entry = recording.note(&mut self.machine, number)?;
                let digest = self.ports.digest.clone().unwrap_or_default().to_words();
                Ok(Marked { note: Some(Note { number, entry, digest }), old: None })
            }
            Mark::Next { log, check } => {
                let output = self.ports.digest();
                if let Some(old) = &mut self.recording {
                    old.end_log(&mut self.machine, check.then_some(output));
                }
                let mut next = Recording::begin(&mut self.machine, log)?;
                let old = self.recording.take();
                old.iter().for_each(|old| next.follow(old));
                self.recording = Some(next);
                let digest = self.ports.digest.get_or_insert_default().to_words();
                Ok(Marked { note: Some(Note { number: 0, entry: 0, digest }), old })
            }
        }
    }

    /// Ends the recording. What is left of it reaches the disk in a thread of its own.
    fn end_recording(&mut self, reply: oneshot::Sender<Result<State, Refusal>>) {
        let Some(mut recording) = self.recording.take() else {
            let _ = reply.send(Err(Refusal::NotRecorded));
            return;
        };
        recording.finish(&mut self.machine, self.ports.digest());
        self.ports.digest = None;
        let state = self.lifecycle.state();
        std::thread::spawn(move || {
            drop(recording);
            let _ = reply.send(Ok(state));
        });
    }

    fn run_quanta(&mut self) -> Result<End, VmError> {
        loop {
            if let Some(end) = self.obey() {
                return Ok(end);
            }
            let end = match self.feed {
                Feed::Live => self.live_quantum()?,
                Feed::Log(_) => self.replay_quantum()?,
            };
            if let Some(end) = end {
                return Ok(end);
            }
            self.publish();
        }
    }

    /// A quantum with inputs from this host; how the VM ends, if it does.
    fn live_quantum(&mut self) -> Result<Option<End>, VmError> {
        self.let_in();
        let stop = match &self.held {
            Some(held) if held.steps() => self.machine.step(self.engine.as_mut(), &mut self.ports),
            _ => self.run_quantum(),
        };
        self.at_point = stop != Stop::Yielded;
        if self.hash_log.look(&mut self.machine)? {
            return Ok(Some(End::StopPoint));
        }
        if self.held.as_mut().is_some_and(|held| held.met(&self.machine, stop)) {
            return Ok(None);
        }
        match stop {
            Stop::Reached => {}
            // Where an engine came back for no reason is no point to let anything in.
            Stop::Yielded | Stop::Breakpoint | Stop::Touched(_) => return Ok(None),
            Stop::Idle { deadline } => self.idle(deadline),
            Stop::Shutdown => return Ok(Some(End::TripleFault)),
            Stop::Power(event) => {
                if let Some(end) = self.power(event)? {
                    return Ok(Some(end));
                }
            }
        }
        self.anchor();
        if let Some(recording) = &mut self.recording {
            recording.look(&mut self.machine, || self.ports.digest());
        }
        Ok(None)
    }

    /// A stretch of replay; how the VM ends, if it does.
    fn replay_quantum(&mut self) -> Result<Option<End>, VmError> {
        let Feed::Log(feed) = &mut self.feed else { return Ok(None) };
        let until = self.hash_log.until();
        let stretch =
            feed.replay(&mut self.machine, self.engine.as_mut(), &mut self.ports, until)?;
        if self.hash_log.look(&mut self.machine)? {
            return Ok(Some(End::StopPoint));
        }
        match stretch {
            Stretch::On => Ok(None),
            Stretch::End(end) => Ok(Some(end)),
            Stretch::There if feed.goes_live() => self.go_live().map(|()| None),
            Stretch::There => Ok(Some(End::StopPoint)),
            Stretch::Power(event) => {
                let end = self.power(event)?;
                if let (Some(_), Feed::Log(feed)) = (end, &mut self.feed) {
                    let finished =
                        feed.finish(&mut self.machine, self.engine.as_mut(), &mut self.ports);
                    finished.map_err(crate::RecordingError::from)?;
                }
                Ok(end)
            }
        }
    }

    /// Leaves the recording: from here the machine is like any other.
    fn go_live(&mut self) -> Result<(), VmError> {
        self.feed = Feed::Live;
        self.pace = Pace::Live(LiveClock::new(monotonic_ns(), self.machine.now()));
        if let Some(plug) = self.plug.take() {
            self.ports.nets = plug()?;
        }
        for nic in self.ports.nets.len()..self.machine.spec().nics.len() {
            let nic = nic as u32;
            self.machine.inject(&mut self.ports, Input::NetLink { nic, up: false });
        }
        Ok(())
    }

    fn run_quantum(&mut self) -> Stop {
        let before = self.machine.branches();
        let (quantum, most_ns) = match &self.pace {
            Pace::Live(clock) => (clock.quantum_branches(), QUANTUM_NS),
            Pace::Seeded | Pace::Warp => (quantum_branches(MachineSpec::NOMINAL_RATE), u64::MAX),
        };
        let end = before.saturating_add(quantum).min(self.hash_log.until());
        let start_ns = monotonic_ns();
        let mut run_ns = 0;
        let stop = loop {
            let slice = match &self.pace {
                Pace::Live(clock) => clock.slice_branches(self.machine.branches() - before, run_ns),
                Pace::Seeded | Pace::Warp => quantum,
            };
            let until = self.machine.branches().saturating_add(slice).min(end);
            let stop = self.machine.run_slice(self.engine.as_mut(), &mut self.ports, until);
            run_ns = monotonic_ns() - start_ns;
            let now = self.machine.branches();
            let ends = now >= end || is_whole(now - before, quantum) || run_ns >= most_ns;
            if stop != Stop::Reached || ends {
                break stop;
            }
        };
        self.metrics.quanta += 1;
        self.metrics.run_ns += run_ns;
        if let Pace::Live(clock) = &mut self.pace {
            clock.measure(run_ns, self.machine.branches() - before);
        }
        stop
    }

    /// Live, moves virtual time to the host's if it has strayed from it.
    fn anchor(&mut self) {
        let Pace::Live(clock) = &mut self.pace else { return };
        let Some(anchor) = clock.correct(monotonic_ns(), self.machine.now()) else { return };
        let Anchor { advance_ns, rate_millins } = anchor;
        self.machine.inject(&mut self.ports, Input::ClockAnchor { advance_ns, rate_millins });
    }

    /// Lets in what came from consoles and networks, as far as there is room.
    fn let_in(&mut self) {
        for (port, room) in self.rooms().into_iter().enumerate() {
            let bytes = self.inbox.take_typed(port, room);
            if !bytes.is_empty() {
                self.machine.inject(&mut self.ports, Input::Console { port: port as u32, bytes });
            }
        }
        for card in 0..self.ports.nets.len() {
            let nic = card as u32;
            // What the guest has not taken yet waits with us: TCP pays dearly for what is dropped.
            let room = self.machine.frame_room(nic);
            for frame in self.inbox.take_frames(card, room) {
                self.metrics.frames_received += 1;
                self.machine.inject(&mut self.ports, Input::NetReceive { nic, frame });
            }
            if self.inbox.take_link_down(card) {
                self.machine.inject(&mut self.ports, Input::NetLink { nic, up: false });
            }
        }
    }

    /// Bytes that each console can take.
    fn rooms(&self) -> [usize; PORTS] {
        std::array::from_fn(|port| match port {
            HVC => HVC_BYTES_PER_QUANTUM,
            port => self.machine.receive_room(port as u32),
        })
    }

    /// The guest waits for `deadline` or for something from outside.
    fn idle(&mut self, deadline: Option<VirtualTime>) {
        let now = self.machine.now();
        let start_ns = monotonic_ns();
        let sleep_ns = match (&self.pace, deadline) {
            (_, None) => None,
            (Pace::Live(clock), Some(at)) => Some(clock.host_ns_of(at).saturating_sub(start_ns)),
            (Pace::Seeded, Some(at)) => Some(at.ns_since(now)),
            (Pace::Warp, Some(_)) => Some(0),
        };
        let sleep = sleep_ns.map(|ns| Duration::from_nanos(ns).min(SLEEP_MAX));
        let until = sleep.map(|sleep| Instant::now() + sleep);
        if let Some(recording) = self.recording.as_mut().filter(|_| sleep_ns > Some(FLUSH_SLEEP_NS))
        {
            recording.flush(&mut self.machine);
        }
        let woken = self.inbox.wait_any(until, self.rooms());
        let idle_ns = monotonic_ns() - start_ns;
        self.metrics.idle_ns += idle_ns;
        match (&self.pace, woken) {
            (_, Woken::Deadline) if deadline.is_some() && sleep < Some(SLEEP_MAX) => {
                self.machine.skip_idle(&mut self.ports);
            }
            (Pace::Seeded, _) => {
                let left = deadline.map_or(u64::MAX, |at| at.ns_since(now));
                let rate_millins = self.machine.rate_millins();
                let anchor = Input::ClockAnchor { advance_ns: idle_ns.min(left), rate_millins };
                self.machine.inject(&mut self.ports, anchor);
            }
            // The anchor that comes next moves time.
            (Pace::Live(_) | Pace::Warp, _) => {}
        }
    }

    /// A change of power state; how the VM ends, if it does.
    fn power(&mut self, event: PowerEvent) -> Result<Option<End>, VmError> {
        match event {
            PowerEvent::PowerOff => return Ok(Some(End::PowerOff)),
            PowerEvent::DebugExit(value) => return Ok(Some(End::DebugExit(value))),
            PowerEvent::Panicked => return Ok(Some(End::GuestPanic)),
            PowerEvent::Reset if self.no_reboot => return Ok(Some(End::Reset)),
            PowerEvent::Reset => {}
        }
        self.metrics.resets += 1;
        self.ports.forget_requests();
        self.machine.reset();
        self.boot.boot(&mut self.machine)?;
        Ok(None)
    }

    /// Does what was asked for, standing still while paused; the end if that was asked for.
    fn obey(&mut self) -> Option<End> {
        loop {
            if let Some(end) = self.inbox.killed() {
                return Some(end);
            }
            if let Some(order) = self.inbox.take_capture() {
                self.capture(order);
            }
            while let Some(order) = self.inbox.take_debug() {
                self.debug(order);
            }
            let held = self.held.as_ref().is_some_and(Held::stands);
            match self.inbox.take_request() {
                Some(request) => self.answer(request),
                None if held || self.lifecycle.state() == State::Paused => self.inbox.wait_order(),
                None => return None,
            }
        }
    }

    /// Does what a debugger wants.
    fn debug(&mut self, order: Order) {
        match (order, &mut self.held) {
            (Order::Attach(reply), held) => {
                let answer = match (&self.feed, &held) {
                    (Feed::Log(_), _) => Err("what is being replayed is debugged as a recording"),
                    (_, Some(_)) => Err("it has a debugger"),
                    (Feed::Live, None) => Ok(()),
                };
                if answer.is_ok() {
                    self.publish();
                    self.held = Some(Held::new(&self.machine));
                }
                // Whoever asked may have gone.
                let _ = reply.send(answer.map_err(str::to_owned));
            }
            (Order::Detach, _) => {
                if let Some(held) = self.held.take() {
                    held.leave(&mut self.machine, self.engine.as_mut());
                }
            }
            (order, Some(held)) => held.obey(&mut self.machine, self.engine.as_mut(), order),
            (_, None) => {}
        }
    }

    fn answer(&mut self, Request { verb, reply }: Request) {
        if verb == Verb::EndRecording {
            return self.end_recording(reply);
        }
        let answer = self.change(verb);
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn change(&mut self, verb: Verb) -> Result<State, Refusal> {
        let state = self.lifecycle.state();
        let refuse = |what| Err(Refusal::State { state, what });
        match (verb, state) {
            (Verb::Pause, State::Paused) | (Verb::Resume, State::Running) => {}
            (Verb::Pause, State::Running) => {
                self.publish();
                self.lifecycle.enter(State::Paused);
            }
            (Verb::Pause, _) => return refuse("paused"),
            (Verb::Resume, State::Paused) => self.lifecycle.enter(State::Running),
            (Verb::Resume, _) => return refuse("resumed"),
            (Verb::Stop, State::Running | State::Paused) => {
                self.machine.inject(&mut self.ports, Input::PowerButton);
                self.lifecycle.enter(State::Stopping);
            }
            // Asked again; some guests want it twice.
            (Verb::Stop | Verb::PowerButton, _) => {
                self.machine.inject(&mut self.ports, Input::PowerButton)
            }
            (Verb::EndRecording, _) => return Err(Refusal::NotRecorded),
        }
        Ok(self.lifecycle.state())
    }

    fn publish(&mut self) {
        let (out, net) = (self.ports.counters, self.ports.net_counters());
        let metrics = &mut self.metrics;
        metrics.branches = self.machine.branches();
        metrics.virtual_time_ns = self.machine.now().0;
        metrics.console_bytes = out.console_bytes;
        metrics.disk_requests = out.disk_requests;
        metrics.disk_failures = self.ports.disk_failures();
        metrics.frames_sent = out.frames;
        metrics.frames_sent_dropped = net.dropped;
        self.shared_metrics.set(metrics);
        self.shared_counters.update(monotonic_ns(), || self.engine.counters());
    }
}

/// Boots `machine` from the contents of the files.
pub(crate) fn boot(
    machine: &mut Machine,
    kernel: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
) -> Result<(), boot::BootError> {
    let mut tables = PlatformTables::standard(1);
    tables.pvpanic = Some(devices::chipset::ports::PVPANIC);
    machine.boot(&BootSpec { kernel, initrd, cmdline, tables: &tables }).map(drop)
}
