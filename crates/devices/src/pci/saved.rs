//! Saved forms of the bus and of configuration spaces.

use minicbor::{Decode, Encode};
use saved::Saved;

/// Saved form of a configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfigSpaceSaved {
    /// All 256 bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
    /// MSI-X, where the function has it.
    #[n(1)]
    pub msix: Option<MsixSaved>,
}

/// Saved form of an MSI-X table.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MsixSaved {
    /// 16 bytes per vector.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub table: Vec<u8>,
    /// Bit per vector whose message waits for an unmask.
    #[n(1)]
    pub pending: u64,
}

/// Saved form of the bus itself; functions have sections of their own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BusSaved {
    /// The register at port 0xcf8.
    #[n(0)]
    pub address: u32,
}

impl Saved for BusSaved {
    const NAME: &'static str = "pci";
    const VERSION: u16 = 1;
}

/// Saved form of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct BridgeSaved {
    /// Its configuration space.
    #[n(0)]
    pub config: ConfigSpaceSaved,
}

impl Saved for BridgeSaved {
    const NAME: &'static str = "pci-bridge";
    const VERSION: u16 = 1;
}
