//! The block device's state machine: the table of requests in flight.

use journal::{DiskCompletion, DiskFailed, DiskOperation, DiskRequest, Output};
use saved::{RestoreError, Sections};
use types::VirtualTime;

use super::regs::{self, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, SECTOR_SIZE};
use super::request::{Action, Request, STATUS_IOERR, STATUS_OK, parse};
use crate::pci::Delivery;
use crate::virtio::chain::len_of;
use crate::virtio::{Broken, Chain, Kind, Piece, VirtioContext, VirtioDevice};

/// The request queue.
const QUEUE: usize = 0;
/// The timer of the earliest completion.
const TIMER: u32 = 0;

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkSpec {
    /// Index of the disk in [`Output::Disk`].
    pub disk: u32,
    /// Size, bytes; what is beyond the last whole sector of 512 is not seen.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Identification, 20 bytes at most are seen.
    pub id: String,
}

impl BlkSpec {
    /// Byte offset of `len` bytes at `sector`, if they are whole sectors of the disk.
    pub(super) fn offset(&self, sector: u64, len: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR_SIZE)?;
        let end = offset.checked_add(len)?;
        let size = self.size / SECTOR_SIZE * SECTOR_SIZE;
        (len.is_multiple_of(SECTOR_SIZE) && end <= size).then_some(offset)
    }
}

/// A request that left and has not come back.
#[derive(Clone, Debug)]
pub(super) struct InFlight {
    pub id: u64,
    pub operation: DiskOperation,
    pub head: u16,
    pub data: Vec<Piece>,
    pub status: Vec<Piece>,
    pub due: VirtualTime,
    /// The driver reset the device meanwhile: its completion is awaited and dropped, so that no
    /// write of before the reset overtakes one of after it.
    pub abandoned: bool,
}

impl InFlight {
    fn bytes(&self) -> u64 {
        match &self.operation {
            DiskOperation::Read { len, .. } => u64::from(*len),
            DiskOperation::Write { data, .. } => data.len() as u64,
            _ => 0,
        }
    }
}

/// A block device.
pub struct Blk {
    pub(super) spec: BlkSpec,
    pub(super) next_id: u64,
    /// By id, that is in order of issue.
    pub(super) in_flight: Vec<InFlight>,
    /// Chains wait in the queue for room in the table.
    pub(super) stalled: bool,
}

impl Blk {
    /// An idle disk.
    pub fn new(spec: BlkSpec) -> Blk {
        Blk { spec, next_id: 0, in_flight: Vec::new(), stalled: false }
    }

    /// Takes requests from the queue as far as there is room for them.
    fn pump(&mut self, cx: &mut VirtioContext<'_>) -> Result<(), Broken> {
        self.stalled = false;
        for _ in 0..cx.available(QUEUE)? {
            let Some(chain) = cx.pop(QUEUE)? else { break };
            if !self.has_room(&chain) {
                cx.unpop(QUEUE, 1);
                self.stalled = true;
                break;
            }
            self.start(cx, &chain)?;
        }
        Ok(())
    }

    fn has_room(&self, chain: &Chain) -> bool {
        let under_way: u64 = self.in_flight.iter().map(InFlight::bytes).sum();
        let more = len_of(&chain.readable) + len_of(&chain.writable);
        let fits = under_way + more <= IN_FLIGHT_BYTES_MAX || self.in_flight.is_empty();
        self.in_flight.len() < IN_FLIGHT_MAX && fits
    }

    fn start(&mut self, cx: &mut VirtioContext<'_>, chain: &Chain) -> Result<(), Broken> {
        let Request { action, data, status } = parse(cx, chain, &self.spec)?;
        let operation = match action {
            Action::Answer(code, bytes) => {
                let written = cx.write(&data, &bytes)?;
                return finish(cx, chain.head, &status, code, written);
            }
            Action::Host(operation) => operation,
        };
        let id = self.next_id;
        self.next_id += 1;
        let due = cx.now.saturating_add_ns(regs::latency_ns(&operation));
        let request = DiskRequest { id, operation: operation.clone() };
        cx.output(Output::Disk { disk: self.spec.disk, request });
        let head = chain.head;
        self.in_flight.push(InFlight { id, operation, head, data, status, due, abandoned: false });
        Ok(())
    }

    fn completed(
        &mut self,
        cx: &mut VirtioContext<'_>,
        completion: &DiskCompletion,
    ) -> Result<(), Broken> {
        let Some(at) = self.in_flight.iter().position(|r| r.id == completion.id) else {
            return Ok(());
        };
        let request = self.in_flight.remove(at);
        if !request.abandoned {
            let (code, written) = carry_out(cx, &request, &completion.result)?;
            finish(cx, request.head, &request.status, code, written)?;
        }
        if self.stalled { self.pump(cx) } else { Ok(()) }
    }

    fn arm(&self, cx: &mut VirtioContext<'_>) {
        cx.timer(TIMER, self.in_flight.iter().map(|request| request.due).min());
    }
}

/// Delivers what the host did; returns status and bytes written to the data buffers.
fn carry_out(
    cx: &mut VirtioContext<'_>,
    request: &InFlight,
    result: &Result<Vec<u8>, DiskFailed>,
) -> Result<(u8, u32), Broken> {
    match (&request.operation, result) {
        (DiskOperation::Read { len, .. }, Ok(data)) if data.len() == *len as usize => {
            Ok((STATUS_OK, cx.write(&request.data, data)?))
        }
        (DiskOperation::Read { .. }, _) | (_, Err(DiskFailed)) => Ok((STATUS_IOERR, 0)),
        (_, Ok(_)) => Ok((STATUS_OK, 0)),
    }
}

/// Writes the status byte and hands the chain back.
fn finish(
    cx: &mut VirtioContext<'_>,
    head: u16,
    status: &[Piece],
    code: u8,
    written: u32,
) -> Result<(), Broken> {
    let status_written = cx.write(status, &[code])?;
    cx.push(QUEUE, head, written + status_written)
}

impl VirtioDevice for Blk {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-blk", id: 2, class: 0x01_0000, queue_sizes: &[regs::QUEUE_SIZE] }
    }

    fn features(&self) -> u64 {
        regs::features(&self.spec)
    }

    fn config(&self) -> Vec<u8> {
        regs::config(&self.spec)
    }

    fn notified(&mut self, cx: &mut VirtioContext<'_>, _queue: usize) -> Result<(), Broken> {
        let result = self.pump(cx);
        self.arm(cx);
        result
    }

    fn timer_fired(&mut self, cx: &mut VirtioContext<'_>, _timer: u32) -> Result<(), Broken> {
        self.arm(cx);
        Ok(())
    }

    fn deliver(&mut self, cx: &mut VirtioContext<'_>, what: Delivery) -> Result<(), Broken> {
        let Delivery::Disk(completion) = what else { return Ok(()) };
        let result = self.completed(cx, &completion);
        self.arm(cx);
        result
    }

    fn due(&self, now: VirtualTime) -> Vec<u64> {
        let mut due: Vec<_> = self
            .in_flight
            .iter()
            .filter(|request| request.due <= now)
            .map(|request| (request.due, request.id))
            .collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }

    fn outstanding(&self) -> Vec<DiskRequest> {
        let request = |r: &InFlight| DiskRequest { id: r.id, operation: r.operation.clone() };
        self.in_flight.iter().map(request).collect()
    }

    fn reset(&mut self) {
        self.stalled = false;
        self.in_flight.iter_mut().for_each(|request| request.abandoned = true);
    }

    fn save(&self, instance: u32, sections: &mut Sections) {
        sections.save(instance, &self.to_saved());
    }

    fn restore(&mut self, instance: u32, sections: &mut Sections) -> Result<(), RestoreError> {
        let saved = sections.restore(instance)?;
        self.take_saved(saved)
    }
}
