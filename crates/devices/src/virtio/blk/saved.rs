//! Saved form of a block device with its requests in flight.

use journal::DiskOperation;
use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved};
use types::VirtualTime;

use super::device::{Blk, BlkSpec, InFlight};
use super::regs::{IN_FLIGHT_MAX, RANGE_SECTORS_MAX, REQUEST_SIZE_MAX, SECTOR_SIZE};
use crate::virtio::Piece;

/// Saved form of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BlkSaved {
    /// Bytes of the disk, to refuse another one.
    #[n(0)]
    pub size: u64,
    /// Whether writes are refused, likewise.
    #[n(1)]
    pub read_only: bool,
    /// Id of the next request.
    #[n(2)]
    pub next_id: u64,
    /// Requests in flight, by id.
    #[n(3)]
    pub in_flight: Vec<InFlightSaved>,
    /// Whether chains wait for room.
    #[n(4)]
    pub stalled: bool,
}

impl Saved for BlkSaved {
    const NAME: &'static str = "virtio-blk";
    const VERSION: u16 = 1;
}

/// Saved form of a request in flight.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InFlightSaved {
    /// Id.
    #[n(0)]
    pub id: u64,
    /// What the host was asked for.
    #[n(1)]
    pub operation: OperationSaved,
    /// First descriptor of the chain.
    #[n(2)]
    pub head: u16,
    /// Where data of a read goes.
    #[n(3)]
    pub data: Vec<Piece>,
    /// Where the status byte goes.
    #[n(4)]
    pub status: Vec<Piece>,
    /// Virtual time of completion, ns.
    #[n(5)]
    pub due_ns: u64,
    /// Whether the driver reset the device meanwhile.
    #[n(6)]
    pub abandoned: bool,
}

/// Saved form of a [`DiskOperation`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum OperationSaved {
    /// Read.
    #[n(0)]
    Read {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// Bytes.
        #[n(1)]
        len: u32,
    },
    /// Write.
    #[n(1)]
    Write {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// What to write.
        #[cbor(n(1), with = "minicbor::bytes")]
        data: Vec<u8>,
    },
    /// Flush.
    #[n(2)]
    Flush,
    /// Discard.
    #[n(3)]
    Discard {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// Bytes.
        #[n(1)]
        len: u64,
    },
    /// Write zeroes.
    #[n(4)]
    WriteZeroes {
        /// Byte offset.
        #[n(0)]
        offset: u64,
        /// Bytes.
        #[n(1)]
        len: u64,
    },
}

impl From<&DiskOperation> for OperationSaved {
    fn from(operation: &DiskOperation) -> OperationSaved {
        match operation {
            &DiskOperation::Read { offset, len } => OperationSaved::Read { offset, len },
            DiskOperation::Write { offset, data } => {
                OperationSaved::Write { offset: *offset, data: data.clone() }
            }
            DiskOperation::Flush => OperationSaved::Flush,
            &DiskOperation::Discard { offset, len } => OperationSaved::Discard { offset, len },
            &DiskOperation::WriteZeroes { offset, len } => {
                OperationSaved::WriteZeroes { offset, len }
            }
        }
    }
}

impl From<OperationSaved> for DiskOperation {
    fn from(saved: OperationSaved) -> DiskOperation {
        match saved {
            OperationSaved::Read { offset, len } => DiskOperation::Read { offset, len },
            OperationSaved::Write { offset, data } => DiskOperation::Write { offset, data },
            OperationSaved::Flush => DiskOperation::Flush,
            OperationSaved::Discard { offset, len } => DiskOperation::Discard { offset, len },
            OperationSaved::WriteZeroes { offset, len } => {
                DiskOperation::WriteZeroes { offset, len }
            }
        }
    }
}

impl OperationSaved {
    /// Whether a driver could have asked for this.
    fn is_allowed(&self, spec: &BlkSpec) -> bool {
        let (offset, len, len_max, writes) = match self {
            OperationSaved::Flush => return true,
            OperationSaved::Read { offset, len } => {
                (*offset, u64::from(*len), REQUEST_SIZE_MAX, false)
            }
            OperationSaved::Write { offset, data } => {
                (*offset, data.len() as u64, REQUEST_SIZE_MAX, true)
            }
            OperationSaved::Discard { offset, len }
            | OperationSaved::WriteZeroes { offset, len } => {
                (*offset, *len, u64::from(RANGE_SECTORS_MAX) * SECTOR_SIZE, true)
            }
        };
        offset % SECTOR_SIZE == 0
            && spec.offset(offset / SECTOR_SIZE, len).is_some()
            && len <= len_max
            && !(writes && spec.read_only)
    }
}

impl From<&InFlight> for InFlightSaved {
    fn from(request: &InFlight) -> InFlightSaved {
        let InFlight { id, operation, head, data, status, due, abandoned } = request;
        InFlightSaved {
            id: *id,
            operation: operation.into(),
            head: *head,
            data: data.clone(),
            status: status.clone(),
            due_ns: due.0,
            abandoned: *abandoned,
        }
    }
}

impl From<InFlightSaved> for InFlight {
    fn from(saved: InFlightSaved) -> InFlight {
        let InFlightSaved { id, operation, head, data, status, due_ns, abandoned } = saved;
        let (operation, due) = (operation.into(), VirtualTime(due_ns));
        InFlight { id, operation, head, data, status, due, abandoned }
    }
}

impl Blk {
    pub(super) fn to_saved(&self) -> BlkSaved {
        let Blk { spec, next_id, in_flight, stalled } = self;
        let BlkSpec { disk: _, size, read_only, id: _ } = spec;
        BlkSaved {
            size: *size,
            read_only: *read_only,
            next_id: *next_id,
            in_flight: in_flight.iter().map(InFlightSaved::from).collect(),
            stalled: *stalled,
        }
    }

    pub(super) fn take_saved(&mut self, saved: BlkSaved) -> Result<(), RestoreError> {
        let BlkSaved { size, read_only, next_id, in_flight, stalled } = saved;
        let malformed = |detail: String| {
            Err(RestoreError::Malformed { name: BlkSaved::NAME.to_owned(), detail })
        };
        let BlkSpec { size: own_size, read_only: own_read_only, .. } = self.spec;
        if (size, read_only) != (own_size, own_read_only) {
            return malformed(format!("saved with a disk of {size} bytes, this has {own_size}"));
        }
        let ordered = in_flight.windows(2).all(|pair| pair[0].id < pair[1].id);
        let numbered = in_flight.last().is_none_or(|last| last.id < next_id) && next_id >> 63 == 0;
        let allowed = in_flight.iter().all(|request| request.operation.is_allowed(&self.spec));
        if in_flight.len() > IN_FLIGHT_MAX || !ordered || !numbered || !allowed {
            return malformed("requests in flight that no driver could have made".to_owned());
        }
        self.next_id = next_id;
        self.in_flight = in_flight.into_iter().map(InFlight::from).collect();
        self.stalled = stalled;
        Ok(())
    }
}
