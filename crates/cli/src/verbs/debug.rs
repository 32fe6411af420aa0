//! `doppel debug`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vmm::client::Client;
use vmm::{DebugRequest, DebugSpec, EngineKind, Listen, Place};

use super::{client_fail, find, print};
use crate::fail::Fail;
use crate::values;

/// Debug a recording with gdb, forwards and backwards, or a VM that runs.
///
/// Breakpoints, watchpoints, stepi, continue, and their reverse: reverse-stepi, reverse-continue,
/// reverse-finish. `monitor` lists commands for going to any place, the last write to an address,
/// the events around a point, and differences between points. Nothing can be written: the past is
/// what it was. A recording that is still being made is followed as it grows.
///
/// The name of a running VM has that VM serve gdb, and the verb ends. The guest stands still while
/// gdb has it, and does not notice. Nothing goes back there; record the VM for that.
///
/// Examples:
///   doppel debug DIR --listen gdb.sock
///   doppel debug VM --listen gdb.sock --once
///   gdb -ex "target remote gdb.sock" vmlinux
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Debug {
    /// Folder of the recording, or name of a running VM.
    #[arg(value_name = "DIR|VM", value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Of a recording, where to begin: a branch count, a guest time as 12.5s, before an event as
    /// #17, or end.
    #[arg(long, value_name = "PLACE", default_value = "#0")]
    at: Place,
    /// Where gdb connects: the path of a socket to be made, or 127.0.0.1:PORT.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:1234")]
    listen: Listen,
    /// Names of the guest kernel's addresses, for `monitor` commands: its vmlinux or System.map, or
    /// what /proc/kallsyms said in the guest. gdb itself reads a vmlinux alone.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    symbols: Option<PathBuf>,
    /// End when gdb goes, instead of waiting for the next one.
    #[arg(long)]
    once: bool,
    /// What executes the guest: translate or interp.
    #[arg(long, value_name = "ENGINE", default_value = "translate", value_parser = values::engine)]
    engine: EngineKind,
}

impl Debug {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        if !self.dir.exists()
            && let Some(name) = self.dir.to_str().filter(|name| vmm::check_name(name).is_ok())
        {
            return self.live(name);
        }
        let spec = DebugSpec {
            dir: self.dir.clone(),
            at: self.at,
            engine: self.engine,
            listen: self.listen.clone(),
            once: self.once,
            symbols: self.symbols.clone(),
        };
        vmm::debug(&spec, |address| {
            let _ = print(&format!("gdb can connect: target remote {address}\n"));
        })?;
        Ok(0)
    }

    /// Has a running VM serve gdb.
    fn live(&self, name: &str) -> Result<u8, Fail> {
        let vm = find(name)?;
        let absolute = |path: &PathBuf| {
            std::path::absolute(path)
                .map_err(|source| Fail::Host { action: "find the current folder", source })
        };
        let listen = match &self.listen {
            Listen::Unix(path) => absolute(path)?.display().to_string(),
            Listen::Tcp(address) => address.to_string(),
        };
        let symbols = self.symbols.as_ref().map(absolute).transpose()?;
        let request = DebugRequest { listen, symbols, once: self.once };
        let api = vm.api();
        let reply = Client::new(&api).debug(&request).map_err(client_fail(name))?;
        print(&format!("gdb can connect: target remote {}\n", reply.address))?;
        Ok(0)
    }
}
