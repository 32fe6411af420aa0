//! `doppel debug`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vmm::{DebugSpec, EngineKind, Listen, Place};

use super::print;
use crate::fail::Fail;
use crate::values;

/// Debug a recording with gdb, forwards and backwards.
///
/// Breakpoints, watchpoints, stepi, continue, and their reverse: reverse-stepi, reverse-continue,
/// reverse-finish. `monitor` lists commands for going to any place, the last write to an address,
/// the events around a point, and differences between points. Nothing can be written: the past is
/// what it was.
///
/// Example:
///   doppel debug DIR --listen gdb.sock
///   gdb -ex "target remote gdb.sock" vmlinux
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Debug {
    /// Folder of the recording.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// Where to begin: a branch count, a guest time as 12.5s, before an event as #17, or end.
    #[arg(long, value_name = "PLACE", default_value = "#0")]
    at: Place,
    /// Where gdb connects: the path of a socket to be made, or 127.0.0.1:PORT.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:1234", value_parser = listen)]
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

fn listen(text: &str) -> Result<Listen, String> {
    match text.parse() {
        Ok(address) => Ok(Listen::Tcp(address)),
        Err(_) if text.is_empty() => Err("write a path, or 127.0.0.1:PORT".into()),
        Err(_) => Ok(Listen::Unix(text.into())),
    }
}

impl Debug {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
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
}
