//! Debugging a recording with gdb, forwards and backwards.

use std::path::{Path, PathBuf};

use gdb::{Debugger, ServeError, Symbols};
use journal::{Entry, LogError};
use travel::{Difference, Halt, Reboot, Sandbox, Travel, first_difference};

use super::RecordingError;
use super::listing::Listing;
use super::opened::{Beginning, Opened, Origin};
use super::player::Place;
use crate::debugging::{Listen, Listener};
use crate::prepare::engine;
use crate::{EngineKind, VmError};

/// What is to be debugged.
#[derive(Clone, Debug)]
pub struct DebugSpec {
    /// The recording's folder.
    pub dir: PathBuf,
    /// Where to begin.
    pub at: Place,
    /// What executes the guest's instructions.
    pub engine: EngineKind,
    /// Where gdb is to connect.
    pub listen: Listen,
    /// End when the first gdb has gone.
    pub once: bool,
    /// A vmlinux, System.map or /proc/kallsyms of the guest's kernel.
    pub symbols: Option<PathBuf>,
}

/// Serves gdb, one after the other; `on_ready` is told the address when gdb can connect.
///
/// # Errors
/// [`VmError::Recording`].
pub fn debug(spec: &DebugSpec, on_ready: impl FnOnce(&str)) -> Result<(), VmError> {
    let symbols = spec.symbols.as_deref().map(read_symbols).transpose()?;
    let mut travel = travel(&spec.dir, spec.engine)?;
    let growing = spec.dir.clone();
    travel.follow(Box::new(move || entries(&growing).ok()));
    go(&mut travel, spec.at)?;
    let mut debugger = Debugger::new(travel, symbols.unwrap_or_default());
    let path = match &spec.listen {
        Listen::Unix(path) => path.as_path(),
        Listen::Tcp(_) => Path::new("the TCP port"),
    };
    let listener = Listener::bind(&spec.listen).map_err(RecordingError::file("listen at", path))?;
    on_ready(listener.address());
    loop {
        let peer = listener.accept().map_err(RecordingError::file("accept gdb at", path))?;
        match peer.serve(&mut debugger) {
            Ok(()) => {}
            Err(ServeError::Subject(error)) => return Err(RecordingError::Travel(error).into()),
            Err(error) => return Err(RecordingError::from(error).into()),
        }
        if spec.once {
            return Ok(());
        }
    }
}

/// The first instruction after which the two engines are not the same in the recording in `dir`,
/// or none; `tick` is called now and then.
///
/// # Errors
/// [`VmError::Recording`].
pub fn compare_engines(dir: &Path, tick: &mut dyn FnMut()) -> Result<Option<Difference>, VmError> {
    let mut one = travel(dir, EngineKind::Translate)?;
    let mut other = travel(dir, EngineKind::Interp)?;
    Ok(first_difference(&mut one, &mut other, tick).map_err(RecordingError::from)?)
}

fn read_symbols(path: &Path) -> Result<Symbols, RecordingError> {
    let bytes = std::fs::read(path).map_err(RecordingError::file("read", path))?;
    Symbols::read(&bytes).map_err(|why| RecordingError::Symbols { path: path.to_owned(), why })
}

/// Goes to a place of the recording.
pub(super) fn go(travel: &mut Travel, place: Place) -> Result<(), RecordingError> {
    let halt = match place {
        Place::End => travel.go_to_branch(u64::MAX).map(|_| Halt::Reached),
        Place::Branches(branches) => travel.go_to_branch(branches),
        Place::Time(time) => travel.go_to_time(time),
        Place::Event(number) => travel.go_to_entry(number),
    }?;
    if halt == Halt::End { Err(RecordingError::Beyond(place.to_string())) } else { Ok(()) }
}

/// A traveller at the beginning of the recording in `dir`.
pub(super) fn travel(dir: &Path, kind: EngineKind) -> Result<Travel, VmError> {
    let recording = Opened::open(dir)?;
    let mut boot = recording.boot_files(&recording.boot_spec())?;
    let Beginning { machine, requests, reads } = recording.begin(&Origin::Beginning, &mut boot)?;
    let reboot: Reboot =
        Box::new(move |machine| boot.boot(machine).map_err(|error| error.to_string()));
    let mut sandbox = Sandbox::new(recording.scratch(&Origin::Beginning)?);
    sandbox.resume(requests, reads);
    let no_reboot = recording.manifest.no_reboot;
    let travel =
        Travel::new(machine, engine(kind, None)?, sandbox, entries(dir)?, reboot, no_reboot);
    let mut travel = travel.map_err(RecordingError::from)?;
    travel.use_scouts(Box::new(move || engine(kind, None).ok()));
    travel.know(Opened::far(dir));
    Ok(travel)
}

/// The whole log; up to where it is damaged, if it is.
fn entries(dir: &Path) -> Result<Vec<Entry>, RecordingError> {
    let mut listing = Listing::open(dir)?;
    let mut entries = Vec::new();
    loop {
        match listing.next_event() {
            Ok(Some(event)) => entries.push(event.entry),
            Ok(None) => return Ok(entries),
            Err(RecordingError::Log { source: source @ LogError::Damaged { .. }, .. }) => {
                tracing::warn!("{source}; the recording is taken to end there");
                return Ok(entries);
            }
            Err(error) => return Err(error),
        }
    }
}
