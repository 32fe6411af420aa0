//! `doppel console`.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use vmm::{Console as Terminal, ConsoleEvent, ConsoleSpec};

use super::find;
use crate::fail::Fail;

/// Attach this terminal to a VM's console.
///
/// What the console showed last is shown first. Ctrl-A X detaches; the VM goes on. One terminal is
/// attached at a time; a new one takes over.
#[derive(Args, Debug)]
pub struct Console {
    /// Name of the VM.
    name: String,
}

impl Console {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let vm = find(&self.name)?;
        let failed = |source| Fail::Host { action: "attach to the console", source };
        let mut from_vm = UnixStream::connect(vm.console()).map_err(failed)?;
        let mut to_vm = from_vm.try_clone().map_err(failed)?;
        let done = Arc::new(AtomicBool::new(false));
        let detached = Arc::clone(&done);
        let terminal = Terminal::open(&ConsoleSpec::Stdio, move |event| {
            let failed = match event {
                ConsoleEvent::Bytes(bytes) => to_vm.write_all(&bytes).is_err(),
                // The end of a pipe: what the VM says is still wanted.
                ConsoleEvent::Closed => false,
                ConsoleEvent::Quit => true,
            };
            if failed {
                detached.store(true, Ordering::SeqCst);
                let _ = to_vm.shutdown(Shutdown::Both);
            }
        })
        .map_err(|error| Fail::Usage(format!("console: {error}")))?;
        let writer = terminal.writer();
        let mut buffer = [0; 16 << 10];
        loop {
            match from_vm.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => writer.write(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) if done.load(Ordering::SeqCst) => break,
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(0)
    }
}
