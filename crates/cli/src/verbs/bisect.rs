//! `doppel bisect`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use vmm::{BisectSpec, EngineKind, Predicate};

use super::{print, print_json};
use crate::fail::Fail;
use crate::values;

/// Find the first point of a recording at which something is so.
///
/// Example:
///   doppel bisect DIR --when 'u32[0xffffffff82a13a00] == 5 && rax > 3'
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Bisect {
    /// Folder of the recording.
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
    /// What is to be so: conditions joined by &&, each a register or u8[ADDRESS], u16[..],
    /// u32[..], u64[..], then one of == != < <= > >=, then a number.
    #[arg(long, value_name = "PREDICATE")]
    when: Predicate,
    /// What executes the guest: translate or interp.
    #[arg(long, value_name = "ENGINE", default_value = "translate", value_parser = values::engine)]
    engine: EngineKind,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Bisect {
    /// Runs the verb.
    pub fn run(&self) -> Result<u8, Fail> {
        let (dir, when) = (self.dir.clone(), self.when.clone());
        let found = vmm::bisect(&BisectSpec { dir, when, engine: self.engine })?;
        let Some(vmm::Found { position, time }) = found else {
            return Err(Fail::Usage("it is so nowhere in the recording".into()));
        };
        if self.json {
            print_json(&serde_json::json!({
                "branches": position.branches,
                "rip": position.rip,
                "iterations": position.iterations,
                "virtual_time_ns": time.0,
            }))?;
        } else {
            let (branches, rip) = (position.branches, position.rip);
            print(&format!("branch {branches} rip {rip:#x}, {time} of guest time\n"))?;
        }
        Ok(0)
    }
}
