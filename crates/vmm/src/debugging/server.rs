//! The gdb server of a running VM: a thread that waits for gdb, one after the other.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gdb::{Debugger, Symbols};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::live::Live;
use super::{Listen, Listener};
use crate::inbox::Inbox;
use crate::keeping::Keeper;

/// How often the thread looks for gdb, and whether the VM has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How gdb is to be served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DebugRequest {
    /// Where gdb connects: the absolute path of a socket to be made, or 127.0.0.1:PORT.
    pub listen: String,
    /// A vmlinux, System.map or /proc/kallsyms of the guest's kernel, an absolute path.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub symbols: Option<PathBuf>,
    /// For one gdb only; otherwise for any number, one after the other.
    #[serde(default)]
    pub once: bool,
}

/// Where gdb can connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DebugReply {
    /// What `target remote` takes.
    pub address: String,
}

/// The thread, if there is one.
#[derive(Debug)]
pub(crate) struct DebugServer {
    inbox: Arc<Inbox>,
    keeper: Arc<Keeper>,
    name: String,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl DebugServer {
    pub fn new(inbox: &Arc<Inbox>, keeper: &Arc<Keeper>, name: &str) -> DebugServer {
        let (inbox, keeper) = (Arc::clone(inbox), Arc::clone(keeper));
        DebugServer { inbox, keeper, name: name.into(), thread: Mutex::default() }
    }

    /// Waits for gdb from now on; in words why that cannot be.
    pub fn start(&self, request: &DebugRequest) -> Result<DebugReply, String> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err("gdb is served already".into());
        }
        let symbols = request.symbols.as_ref().map(|path| {
            let read = std::fs::read(path).map_err(|error| error.to_string());
            read.and_then(|file| Symbols::read(&file)).map_err(|why| format!("{path:?}: {why}"))
        });
        let symbols = symbols.transpose()?.unwrap_or_default();
        let listen: Listen = request.listen.parse()?;
        let failed = |error| format!("cannot listen at {}: {error}", request.listen);
        let listener = Listener::bind(&listen).map_err(failed)?;
        listener.do_not_wait().map_err(failed)?;
        let address = listener.address().to_owned();
        let waiter = Waiter {
            inbox: Arc::clone(&self.inbox),
            keeper: Arc::clone(&self.keeper),
            name: self.name.clone(),
            symbols,
            listener,
            once: request.once,
        };
        let builder = std::thread::Builder::new().name("gdb".into());
        let started = builder.spawn(move || waiter.serve()).map_err(|error| error.to_string())?;
        *thread = Some(started);
        Ok(DebugReply { address })
    }
}

impl Drop for DebugServer {
    /// The thread ends when the inbox is closed, and removes its socket, unless gdb has it.
    fn drop(&mut self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let working = |thread: &JoinHandle<()>| !thread.is_finished();
        let patience = Instant::now() + 4 * LOOK_EVERY;
        while thread.as_ref().is_some_and(working) && Instant::now() < patience {
            std::thread::sleep(LOOK_EVERY / 10);
        }
    }
}

struct Waiter {
    inbox: Arc<Inbox>,
    keeper: Arc<Keeper>,
    name: String,
    symbols: Symbols,
    listener: Listener,
    once: bool,
}

impl Waiter {
    fn serve(self) {
        while !self.inbox.wait_closed(LOOK_EVERY) {
            match self.listener.accept() {
                Ok(peer) => {
                    match Live::attach(&self.inbox, &self.keeper, &self.name) {
                        Ok(live) => {
                            let mut debugger = Debugger::new(live, self.symbols.clone());
                            if let Err(error) = peer.serve(&mut debugger) {
                                tracing::warn!("gdb: {error}");
                            }
                        }
                        Err(why) => tracing::warn!("gdb is sent away: {why}"),
                    }
                    if self.once {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return tracing::error!("gdb cannot connect any more: {error}"),
            }
        }
    }
}
