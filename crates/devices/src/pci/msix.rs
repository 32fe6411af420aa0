//! MSI-X: the vector table, the pending bits, masking (PCI 3.0 section 6.8.2).

use super::MsixSaved;
use crate::{Effect, Effects};

/// Most vectors a function of ours has.
pub const VECTORS_MAX: u16 = 64;

/// Bytes of a table entry: address low, address high, data, control.
const ENTRY_SIZE: usize = 16;
/// Mask bit of an entry's control word.
const ENTRY_MASKED: u32 = 1;
/// Offset of the control word in an entry.
const ENTRY_CONTROL: usize = 12;

/// The vector table of a function and which messages wait for an unmask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Msix {
    table: Vec<u8>,
    pub(super) pending: u64,
    /// Byte offset of the table in the BAR.
    table_offset: u64,
    /// Byte offset of the pending bits in the BAR.
    pending_offset: u64,
    enabled: bool,
    masked: bool,
}

impl Msix {
    pub(super) fn new(vectors: u16, table_offset: u64, pending_offset: u64) -> Msix {
        assert!((1..=VECTORS_MAX).contains(&vectors), "{vectors} MSI-X vectors");
        let mut msix = Msix {
            table: vec![0; usize::from(vectors) * ENTRY_SIZE],
            pending: 0,
            table_offset,
            pending_offset,
            enabled: false,
            masked: false,
        };
        msix.reset();
        msix
    }

    /// Power-up: every vector masked, nothing pending.
    pub(super) fn reset(&mut self) {
        self.table.fill(0);
        for entry in self.table.chunks_exact_mut(ENTRY_SIZE) {
            entry[ENTRY_CONTROL] = ENTRY_MASKED as u8;
        }
        self.pending = 0;
        (self.enabled, self.masked) = (false, false);
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        (self.table.len() / ENTRY_SIZE) as u16
    }

    /// Whether the function sends messages instead of driving its pin.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Forgets messages that wait for an unmask, as a device reset does.
    pub fn clear_pending(&mut self) {
        self.pending = 0;
    }

    /// Takes over the enable and function-mask bits of the capability.
    pub(super) fn set_control(&mut self, enabled: bool, masked: bool, effects: &mut Effects) {
        (self.enabled, self.masked) = (enabled, masked);
        self.release(effects);
    }

    /// Sends the message of `vector`, or keeps it pending while masked. Vectors beyond the table
    /// and calls while MSI-X is disabled do nothing.
    pub fn trigger(&mut self, vector: u16, effects: &mut Effects) {
        if !self.enabled || vector >= self.vectors() {
            return;
        }
        if self.masked || self.entry_masked(vector) {
            self.pending |= 1 << vector;
        } else {
            self.send(vector, effects);
        }
    }

    /// Sends what is pending and no longer masked.
    fn release(&mut self, effects: &mut Effects) {
        if !self.enabled || self.masked || self.pending == 0 {
            return;
        }
        for vector in 0..self.vectors() {
            if self.pending & (1 << vector) != 0 && !self.entry_masked(vector) {
                self.pending &= !(1 << vector);
                self.send(vector, effects);
            }
        }
    }

    fn word(&self, vector: u16, at: usize) -> u32 {
        let from = usize::from(vector) * ENTRY_SIZE + at;
        let bytes = &self.table[from..from + 4];
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn entry_masked(&self, vector: u16) -> bool {
        self.word(vector, ENTRY_CONTROL) & ENTRY_MASKED != 0
    }

    fn send(&self, vector: u16, effects: &mut Effects) {
        let address = u64::from(self.word(vector, 0)) | u64::from(self.word(vector, 4)) << 32;
        effects.push(Effect::Msi { address, data: self.word(vector, 8) });
    }

    /// Reads at `offset` of the BAR; bytes that are neither table nor pending bits read as 0.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (i, byte) in into.iter_mut().enumerate() {
            let at = offset.wrapping_add(i as u64);
            let pending_at = at.wrapping_sub(self.pending_offset);
            *byte = match self.table_index(at) {
                Some(index) => self.table[index],
                None if pending_at < 8 => self.pending.to_le_bytes()[pending_at as usize],
                None => 0,
            };
        }
    }

    /// Writes at `offset` of the BAR; only the table can be written.
    pub fn write(&mut self, offset: u64, from: &[u8], effects: &mut Effects) {
        for (i, &byte) in from.iter().enumerate() {
            if let Some(index) = self.table_index(offset.wrapping_add(i as u64)) {
                self.table[index] = byte & writable(index);
            }
        }
        self.release(effects);
    }

    fn table_index(&self, at: u64) -> Option<usize> {
        let index = at.checked_sub(self.table_offset)?;
        (index < self.table.len() as u64).then_some(index as usize)
    }

    /// The saved form; where the table lies is fixed, the control bits are the capability's.
    pub(super) fn save(&self) -> MsixSaved {
        let Msix { table, pending, table_offset: _, pending_offset: _, enabled: _, masked: _ } =
            self;
        MsixSaved { table: table.clone(), pending: *pending }
    }

    /// Replaces table and pending bits by saved ones; false if they do not fit this function.
    pub(super) fn load(&mut self, table: &[u8], pending: u64) -> bool {
        let vectors = self.vectors();
        let stray = if vectors == 64 { 0 } else { pending >> vectors };
        if table.len() != self.table.len() || stray != 0 {
            return false;
        }
        for (index, &byte) in table.iter().enumerate() {
            self.table[index] = byte & writable(index);
        }
        self.pending = pending;
        true
    }
}

/// The bits of table byte `index` that a guest may set: messages are dword-aligned, and of the
/// control word only the mask bit exists.
fn writable(index: usize) -> u8 {
    match index % ENTRY_SIZE {
        0 => 0xfc,
        ENTRY_CONTROL => ENTRY_MASKED as u8,
        13..=15 => 0,
        _ => 0xff,
    }
}
