//! From a descriptor chain to a request: header, data, status byte (section 5.2.6).

use journal::DiskOperation;

use super::BlkSpec;
use super::regs::{ID_SIZE, RANGE_SECTORS_MAX, REQUEST_SIZE_MAX, SECTOR_SIZE};
use crate::virtio::chain::{len_of, part};
use crate::virtio::{Broken, Chain, Piece, VirtioContext};

/// Status byte: done.
pub(super) const STATUS_OK: u8 = 0;
/// Status byte: failed.
pub(super) const STATUS_IOERR: u8 = 1;
/// Status byte: not a request this device knows.
pub(super) const STATUS_UNSUPPORTED: u8 = 2;

const HEADER_SIZE: u64 = 16;
const RANGE_SIZE: u64 = 16;
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_FLUSH: u32 = 4;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
/// Flag of a write-zeroes range: it may be unmapped.
const RANGE_UNMAP: u32 = 1;

/// What to do about a request.
pub(super) enum Action {
    /// The host does it; data of a read goes to the request's `data`.
    Host(DiskOperation),
    /// Answered on the spot, with bytes for the request's `data`.
    Answer(u8, Vec<u8>),
}

/// A request taken apart.
pub(super) struct Request {
    pub action: Action,
    /// Where data for the driver goes.
    pub data: Vec<Piece>,
    /// Where the status byte goes.
    pub status: Vec<Piece>,
}

/// Takes a chain apart. The framing is the driver's choice (section 2.7.4.1), so header and
/// status are found by byte count.
pub(super) fn parse(
    cx: &VirtioContext<'_>,
    chain: &Chain,
    spec: &BlkSpec,
) -> Result<Request, Broken> {
    let (read_len, write_len) = (len_of(&chain.readable), len_of(&chain.writable));
    if read_len < HEADER_SIZE || write_len < 1 {
        return Err(Broken::Request);
    }
    let header = cx.read(&chain.readable, HEADER_SIZE)?;
    let (kind, sector) = (u32_at(&header, 0), u64_at(&header, 8));
    let data = part(&chain.writable, 0, write_len - 1);
    let out = part(&chain.readable, HEADER_SIZE, u64::MAX);
    let action = match kind {
        TYPE_IN => read(spec, sector, write_len - 1),
        TYPE_OUT => write(cx, spec, sector, &out)?,
        TYPE_FLUSH => Action::Host(DiskOperation::Flush),
        TYPE_GET_ID => Action::Answer(STATUS_OK, identification(spec)),
        TYPE_DISCARD | TYPE_WRITE_ZEROES => range(cx, spec, kind, &out)?,
        _ => Action::Answer(STATUS_UNSUPPORTED, Vec::new()),
    };
    Ok(Request { action, data, status: part(&chain.writable, write_len - 1, 1) })
}

fn failed() -> Action {
    Action::Answer(STATUS_IOERR, Vec::new())
}

fn read(spec: &BlkSpec, sector: u64, len: u64) -> Action {
    match spec.offset(sector, len) {
        Some(_) if len == 0 => Action::Answer(STATUS_OK, Vec::new()),
        Some(offset) if len <= REQUEST_SIZE_MAX => {
            Action::Host(DiskOperation::Read { offset, len: len as u32 })
        }
        _ => failed(),
    }
}

fn write(
    cx: &VirtioContext<'_>,
    spec: &BlkSpec,
    sector: u64,
    out: &[Piece],
) -> Result<Action, Broken> {
    let len = len_of(out);
    Ok(match spec.offset(sector, len) {
        Some(_) if len == 0 => Action::Answer(STATUS_OK, Vec::new()),
        Some(offset) if len <= REQUEST_SIZE_MAX && !spec.read_only => {
            let data = cx.read(out, REQUEST_SIZE_MAX)?;
            Action::Host(DiskOperation::Write { offset, data })
        }
        _ => failed(),
    })
}

/// One range of a discard or write-zeroes request; we offer one per request.
fn range(
    cx: &VirtioContext<'_>,
    spec: &BlkSpec,
    kind: u32,
    out: &[Piece],
) -> Result<Action, Broken> {
    if spec.read_only || len_of(out) != RANGE_SIZE {
        return Ok(failed());
    }
    let range = cx.read(out, RANGE_SIZE)?;
    let (sector, sectors, flags) = (u64_at(&range, 0), u32_at(&range, 8), u32_at(&range, 12));
    let allowed = if kind == TYPE_WRITE_ZEROES { RANGE_UNMAP } else { 0 };
    if flags & !allowed != 0 {
        return Ok(Action::Answer(STATUS_UNSUPPORTED, Vec::new()));
    }
    let len = u64::from(sectors) * SECTOR_SIZE;
    Ok(match spec.offset(sector, len) {
        Some(_) if len == 0 => Action::Answer(STATUS_OK, Vec::new()),
        Some(offset) if sectors <= RANGE_SECTORS_MAX && kind == TYPE_DISCARD => {
            Action::Host(DiskOperation::Discard { offset, len })
        }
        Some(offset) if sectors <= RANGE_SECTORS_MAX => {
            Action::Host(DiskOperation::WriteZeroes { offset, len })
        }
        _ => failed(),
    })
}

/// The identification string, padded with zeroes.
fn identification(spec: &BlkSpec) -> Vec<u8> {
    let mut id = spec.id.as_bytes().to_vec();
    id.resize(ID_SIZE, 0);
    id
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
