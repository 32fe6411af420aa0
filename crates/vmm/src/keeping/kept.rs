//! What a monitor wants back of a VM, beyond the machine: in the manifest's field `vm`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::prepare::net_text;
use crate::{EngineKind, NetKind, NetSpec, VmSpec};

/// A VM around its machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct VmKept {
    /// Its name.
    pub name: String,
    /// `translate` or `interp`.
    pub engine: String,
    /// What it boots from when it is reset.
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    pub cmdline: String,
    /// `live`, `seed` or `warp`.
    pub clock: String,
    pub no_reboot: bool,
    /// Network cards in order.
    pub nets: Vec<NetKept>,
}

/// What a network card is plugged into.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NetKept {
    /// `user` or `tap=NAME`.
    pub to: String,
    /// Ports of the host that lead to the guest.
    pub forwards: Vec<String>,
}

impl VmKept {
    pub fn of(spec: &VmSpec, name: &str) -> VmKept {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let net = |net: &NetSpec| {
            let (to, forwards) = net_text(&net.kind);
            NetKept { to, forwards }
        };
        VmKept {
            name: name.into(),
            engine: spec.engine.name().into(),
            kernel: absolute(&spec.kernel),
            initrd: spec.initrd.as_ref().map(absolute),
            cmdline: spec.cmdline.clone(),
            clock: spec.clock_name().into(),
            no_reboot: spec.no_reboot,
            nets: spec.nets.iter().map(net).collect(),
        }
    }

    /// The engine; the default one if this release has none of that name.
    pub fn engine(&self) -> EngineKind {
        let engines = [EngineKind::Interp, EngineKind::Translate];
        engines.into_iter().find(|kind| kind.name() == self.engine).unwrap_or_default()
    }
}

impl NetKept {
    /// The far end of the cable; in words why there is none.
    pub fn kind(&self) -> Result<NetKind, String> {
        if let Some(name) = self.to.strip_prefix("tap=") {
            return Ok(NetKind::Tap(name.into()));
        }
        if self.to != "user" {
            return Err(format!("a network card is plugged into {:?}, which is unknown", self.to));
        }
        let forwards = self.forwards.iter().map(|text| text.parse());
        let forwards: Result<Vec<_>, _> = forwards.collect();
        Ok(NetKind::User(forwards.map_err(|error: host::net::ForwardError| error.to_string())?))
    }
}
