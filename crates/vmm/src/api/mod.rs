//! The REST API of one VM on a unix socket: the same verbs as the command line.
//!
//! Answers are JSON, errors too: `{"error": "..."}`. The description is at `/openapi.json`, made
//! from the handlers themselves.

mod routes;
mod server;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::control::Control;
use crate::debugging::DebugServer;
use crate::keeping::Keeper;
use crate::lifecycle::Lifecycle;
use crate::status::{SharedCounters, SharedMetrics};
use crate::{State, VmInfo};

pub(crate) use server::Server;

/// What handlers know.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub info: VmInfo,
    pub debug: Arc<DebugServer>,
    pub keeper: Arc<Keeper>,
    pub control: Control,
    pub lifecycle: Arc<Lifecycle>,
    pub metrics: Arc<SharedMetrics>,
    pub counters: Arc<SharedCounters>,
}

/// The state of the VM after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateReply {
    /// Where the VM is in its life.
    pub state: State,
}

/// How a VM is to be stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// At once, without asking the guest.
    #[serde(default)]
    pub force: bool,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorReply {
    /// In words.
    pub error: String,
}

/// The OpenAPI description, as JSON with a final newline.
pub fn openapi_json() -> String {
    let mut text = routes::description().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn checked_in_description_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let current = super::openapi_json();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == current, "docs/openapi.json is old; run this test with UPDATE_EXPECT=1");
    }
}
