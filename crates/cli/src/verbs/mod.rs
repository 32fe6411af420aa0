//! One file per verb.

pub mod bisect;
pub mod chain;
pub mod checkpoint;
pub mod console;
pub mod debug;
pub mod events;
pub mod fork;
pub mod inspect;
pub mod list;
pub mod pause;
pub mod record;
pub mod replay;
pub mod restore;
pub mod resume;
pub mod run;
pub mod save_recording;
pub mod stop;
pub mod trace;
mod transcript;
pub mod verify;

use vmm::client::ClientError;
use vmm::registry::{self, Running};

use crate::fail::Fail;

/// The running VM of this name.
fn find(name: &str) -> Result<Running, Fail> {
    vmm::check_name(name)?;
    registry::find(name)?.ok_or_else(|| Fail::NoVm(name.into()))
}

/// Names the VM in a failure.
fn client_fail(name: &str) -> impl Fn(ClientError) -> Fail {
    move |source| Fail::Client { name: name.into(), source }
}

/// Prints a value as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), Fail> {
    let failed = |source: std::io::Error| Fail::Host { action: "write to standard output", source };
    let text = serde_json::to_string_pretty(value).map_err(|error| failed(error.into()))?;
    print(&format!("{text}\n"))
}

/// Prints to standard output; a reader that went away is no reason to complain twice.
fn print(text: &str) -> Result<(), Fail> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|source| Fail::Host { action: "write to standard output", source })
}
