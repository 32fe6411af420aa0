//! Loads and stores by segment and offset or by linear address: the TLB's fast path, and the slow
//! path for everything else (faults, page crossings, devices, watched pages).

use memory::{Ram, RamOffset};
use types::{Gpa, PAGE_MASK, PAGE_SIZE};

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::paging::{Access, Place};
use crate::state::{Seg, attr};
use crate::tlb::SIDE_SUPERVISOR;

/// A value that one access moves.
pub trait Word: Copy {
    /// Bytes.
    const SIZE: u64;
    /// Loads from RAM.
    fn load(ram: &Ram, at: RamOffset) -> Self;
    /// Stores to RAM; see `Ram::store_u64` for what is promised.
    fn store(self, ram: &mut Ram, at: RamOffset);
    /// From little-endian bytes, exactly `SIZE`.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Calls `with` on the little-endian bytes.
    fn with_bytes<R>(self, with: impl FnOnce(&[u8]) -> R) -> R;
    /// Zero-extended, or truncated.
    fn to_u64(self) -> u64;
    /// Truncated.
    fn from_u64(value: u64) -> Self;
}

macro_rules! words {
    ($($type:ident $load:ident $store:ident),*) => {$(
        impl Word for $type {
            const SIZE: u64 = size_of::<$type>() as u64;
            #[inline(always)]
            fn load(ram: &Ram, at: RamOffset) -> Self {
                ram.$load(at)
            }
            #[inline(always)]
            fn store(self, ram: &mut Ram, at: RamOffset) {
                ram.$store(at, self);
            }
            fn from_bytes(bytes: &[u8]) -> Self {
                $type::from_le_bytes(bytes.try_into().expect("SIZE bytes"))
            }
            fn with_bytes<R>(self, with: impl FnOnce(&[u8]) -> R) -> R {
                with(&self.to_le_bytes())
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $type
            }
        }
    )*};
}

words!(u8 load_u8 store_u8, u16 load_u16 store_u16, u32 load_u32 store_u32,
    u64 load_u64 store_u64, u128 load_u128 store_u128);

/// Longest access in bytes that [`Cpu::read_bytes`] and [`Cpu::write_bytes`] take.
pub const ACCESS_SIZE_MAX: usize = 4096;

#[inline(always)]
fn in_one_page(gva: u64, size: u64) -> bool {
    (gva & PAGE_MASK) + size <= PAGE_SIZE
}

impl Cpu<'_> {
    /// Linear address of `size` bytes at `seg:offset`, checked as the mode demands (SDM vol. 3,
    /// 5.3); canonicality is checked by the access itself.
    ///
    /// # Errors
    /// #GP(0) or #SS(0).
    #[inline(always)]
    pub fn linear(&self, seg: Seg, offset: u64, size: u64, access: Access) -> Result<u64> {
        if self.vcpu.mode.bits == 64 {
            return Ok(self.vcpu.mode.bases[seg as usize].wrapping_add(offset));
        }
        self.linear_legacy(seg, offset, size, access)
    }

    fn linear_legacy(&self, seg: Seg, offset: u64, size: u64, access: Access) -> Result<u64> {
        let segment = self.vcpu.seg(seg);
        let fault = if seg == Seg::Ss { Exception::SS0 } else { Exception::GP0 };
        let offset = offset & 0xffff_ffff;
        let protected = self.vcpu.mode.protected && !self.vcpu.mode.v86;
        if protected && !type_allows(segment.attributes, access) {
            return Err(fault);
        }
        let last = offset + (size - 1);
        let expand_down = segment.attributes & (attr::CODE | attr::DC) == attr::DC;
        let inside = if expand_down && protected {
            let top = if segment.has(attr::DB) { 0xffff_ffff } else { 0xffff };
            offset > u64::from(segment.limit) && last <= top
        } else {
            last <= u64::from(segment.limit)
        };
        if !inside {
            return Err(fault);
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Loads a value at `seg:offset` with the current privilege.
    ///
    /// # Errors
    /// Whatever the access raises.
    #[inline(always)]
    pub fn read<T: Word>(&mut self, seg: Seg, offset: u64) -> Result<T> {
        let gva = self.linear(seg, offset, T::SIZE, Access::Read)?;
        if let Some(at) = self.vcpu.tlb.lookup_read(self.vcpu.mode.side, gva)
            && in_one_page(gva, T::SIZE)
        {
            return Ok(T::load(self.ram, RamOffset(at)));
        }
        self.read_slow(seg, gva)
    }

    /// Stores a value at `seg:offset` with the current privilege.
    ///
    /// # Errors
    /// Whatever the access raises; nothing is stored then.
    #[inline(always)]
    pub fn write<T: Word>(&mut self, seg: Seg, offset: u64, value: T) -> Result<()> {
        let gva = self.linear(seg, offset, T::SIZE, Access::Write)?;
        if let Some(at) = self.vcpu.tlb.lookup_write(self.vcpu.mode.side, gva)
            && in_one_page(gva, T::SIZE)
        {
            value.store(self.ram, RamOffset(at));
            return Ok(());
        }
        self.write_slow(seg, gva, value)
    }

    #[cold]
    fn read_slow<T: Word>(&mut self, seg: Seg, gva: u64) -> Result<T> {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..T::SIZE as usize];
        self.check_aligned(seg, gva, T::SIZE, T::SIZE.min(8))?;
        self.read_linear(self.vcpu.mode.walk_side, seg, gva, bytes)?;
        Ok(T::from_bytes(bytes))
    }

    #[cold]
    fn write_slow<T: Word>(&mut self, seg: Seg, gva: u64, value: T) -> Result<()> {
        self.check_aligned(seg, gva, T::SIZE, T::SIZE.min(8))?;
        value.with_bytes(|bytes| self.write_linear(self.vcpu.mode.walk_side, seg, gva, bytes))
    }

    /// #AC(0) for an access of `size` bytes that is not at a multiple of `alignment`, where that
    /// is checked; a non-canonical address comes first.
    ///
    /// # Errors
    /// #AC(0), or #GP(0) or #SS(0) for a non-canonical address.
    pub fn check_aligned(&self, seg: Seg, gva: u64, size: u64, alignment: u64) -> Result<()> {
        if !self.vcpu.mode.checks_alignment || gva & (alignment - 1) == 0 {
            return Ok(());
        }
        self.check_canonical(seg, gva, size)?;
        Err(Exception::AC0)
    }

    fn check_canonical(&self, seg: Seg, gva: u64, size: u64) -> Result<()> {
        let last = self.wrap_linear(gva.wrapping_add(size.max(1) - 1));
        if self.is_valid_linear(gva) && self.is_valid_linear(last) {
            return Ok(());
        }
        Err(if seg == Seg::Ss { Exception::SS0 } else { Exception::GP0 })
    }

    /// Loads up to [`ACCESS_SIZE_MAX`] bytes at `seg:offset`.
    ///
    /// # Errors
    /// Whatever the access raises.
    pub fn read_bytes(&mut self, seg: Seg, offset: u64, into: &mut [u8]) -> Result<()> {
        let gva = self.linear(seg, offset, into.len() as u64, Access::Read)?;
        self.read_linear(self.vcpu.mode.walk_side, seg, gva, into)
    }

    /// Stores up to [`ACCESS_SIZE_MAX`] bytes at `seg:offset`.
    ///
    /// # Errors
    /// Whatever the access raises; nothing is stored then.
    pub fn write_bytes(&mut self, seg: Seg, offset: u64, bytes: &[u8]) -> Result<()> {
        let gva = self.linear(seg, offset, bytes.len() as u64, Access::Write)?;
        self.write_linear(self.vcpu.mode.walk_side, seg, gva, bytes)
    }

    /// Raises what a store of `size` bytes at `seg:offset` would raise, without storing.
    ///
    /// # Errors
    /// Whatever the store would raise.
    pub fn probe_write(&mut self, seg: Seg, offset: u64, size: u64) -> Result<()> {
        let gva = self.linear(seg, offset, size, Access::Write)?;
        if self.vcpu.tlb.lookup_write(self.vcpu.mode.side, gva).is_some() && in_one_page(gva, size)
        {
            return Ok(());
        }
        if size <= 8 {
            self.check_aligned(seg, gva, size, size)?;
        }
        self.places(self.vcpu.mode.walk_side, seg, gva, size, Access::Write)?;
        Ok(())
    }

    /// Loads a value at a linear address on the processor's own behalf (descriptors, TSS).
    ///
    /// # Errors
    /// #PF, or #GP(0) for a non-canonical address.
    pub fn read_system<T: Word>(&mut self, gva: u64) -> Result<T> {
        let mut bytes = [0; 16];
        let bytes = &mut bytes[..T::SIZE as usize];
        self.read_linear(SIDE_SUPERVISOR, Seg::Ds, gva, bytes)?;
        Ok(T::from_bytes(bytes))
    }

    /// Stores a value at a linear address on the processor's own behalf.
    ///
    /// # Errors
    /// #PF, or #GP(0) for a non-canonical address.
    pub fn write_system<T: Word>(&mut self, gva: u64, value: T) -> Result<()> {
        value.with_bytes(|bytes| self.write_linear(SIDE_SUPERVISOR, Seg::Ds, gva, bytes))
    }

    /// Both pages' places for an access of `size` bytes: nothing happens unless all of it may.
    fn places(
        &mut self,
        side: u8,
        seg: Seg,
        gva: u64,
        size: u64,
        access: Access,
    ) -> Result<(Place, u64, Option<Place>)> {
        debug_assert!(size as usize <= ACCESS_SIZE_MAX);
        self.sync_tlb();
        if let Some(at) = self.vcpu.tlb.lookup(side, gva, access)
            && in_one_page(gva, size.max(1))
        {
            return Ok((Place::Ram(RamOffset(at)), size, None));
        }
        self.check_canonical(seg, gva, size)?;
        let first = self.translate(side, gva, access)?;
        let first_size = (PAGE_SIZE - (gva & PAGE_MASK)).min(size);
        if first_size == size {
            return Ok((first, size, None));
        }
        let next = self.wrap_linear(gva.wrapping_add(first_size));
        let second = self.translate(side, next, access)?;
        Ok((first, first_size, Some(second)))
    }

    fn wrap_linear(&self, gva: u64) -> u64 {
        if self.vcpu.mode.bits == 64 || self.vcpu.mode.long { gva } else { gva & 0xffff_ffff }
    }

    /// Loads bytes at a linear address from TLB side `side`; `seg` picks #SS or #GP.
    ///
    /// # Errors
    /// Whatever the access raises.
    pub fn read_linear(&mut self, side: u8, seg: Seg, gva: u64, into: &mut [u8]) -> Result<()> {
        let (first, split, second) =
            self.places(side, seg, gva, into.len() as u64, Access::Read)?;
        self.watch_data(gva, into.len() as u64, false);
        let (head, tail) = into.split_at_mut(split as usize);
        self.read_place(first, head);
        if let Some(second) = second {
            self.read_place(second, tail);
        }
        Ok(())
    }

    /// Stores bytes at a linear address from TLB side `side`; `seg` picks #SS or #GP.
    ///
    /// # Errors
    /// Whatever the access raises; nothing is stored then.
    pub fn write_linear(&mut self, side: u8, seg: Seg, gva: u64, bytes: &[u8]) -> Result<()> {
        let (first, split, second) =
            self.places(side, seg, gva, bytes.len() as u64, Access::Write)?;
        self.watch_data(gva, bytes.len() as u64, true);
        let (head, tail) = bytes.split_at(split as usize);
        self.write_place(first, head);
        if let Some(second) = second {
            self.write_place(second, tail);
        }
        Ok(())
    }

    /// Notes the data breakpoints an access hits: traps, delivered at the next boundary.
    fn watch_data(&mut self, gva: u64, size: u64, write: bool) {
        if self.vcpu.mode.watches_data {
            self.vcpu.pending.debug |= self.vcpu.breakpoints_hit(gva, size, write, false);
        }
    }

    fn read_place(&mut self, place: Place, into: &mut [u8]) {
        match place {
            Place::Ram(at) => {
                self.vcpu.attention |= self.ram.note_access(at, into.len() as u64, false);
                self.ram.load_bytes(at, into);
            }
            Place::Device(gpa) => {
                for (index, piece) in into.chunks_mut(8).enumerate() {
                    self.read_device(gpa.wrapping_add(8 * index as u64), piece);
                }
            }
        }
    }

    fn write_place(&mut self, place: Place, bytes: &[u8]) {
        match place {
            Place::Ram(at) => {
                let code_writes = self.ram.code_writes();
                self.ram.write_in_page(at, bytes);
                self.sync_tlb();
                let noted = self.ram.note_access(at, bytes.len() as u64, true);
                self.vcpu.attention |= noted || self.ram.code_writes() != code_writes;
            }
            Place::Device(gpa) => {
                for (index, piece) in bytes.chunks(8).enumerate() {
                    self.write_device(gpa.wrapping_add(8 * index as u64), piece);
                }
            }
        }
    }

    fn read_device(&mut self, gpa: Gpa, into: &mut [u8]) {
        if self.vcpu.lapic.claims(gpa) {
            let now = self.bus.now(self.vcpu.branches);
            let register = self.vcpu.lapic.mmio_read(now, (gpa.0 & PAGE_MASK) as u32 & !3);
            let bytes = register.to_le_bytes();
            for (index, byte) in into.iter_mut().enumerate() {
                *byte = *bytes.get((gpa.0 as usize & 3) + index).unwrap_or(&0);
            }
            return;
        }
        self.bus.mmio_read(self.ram, self.vcpu.branches, gpa, into);
        self.after_bus_access();
    }

    fn write_device(&mut self, gpa: Gpa, bytes: &[u8]) {
        if self.vcpu.lapic.claims(gpa) {
            if bytes.len() == 4 && gpa.0 & 3 == 0 {
                let value = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
                self.lapic_mmio_write((gpa.0 & PAGE_MASK) as u32, value);
            }
            return;
        }
        self.bus.mmio_write(self.ram, self.vcpu.branches, gpa, bytes);
        self.after_bus_access();
    }

    /// Takes notice of what a device did to RAM, lines and timers.
    pub(crate) fn after_bus_access(&mut self) {
        self.sync_tlb();
        self.vcpu.attention |= self.bus.attention();
    }
}

fn type_allows(attributes: u32, access: Access) -> bool {
    if attributes & (attr::UNUSABLE | attr::PRESENT | attr::S) != attr::PRESENT | attr::S {
        return false;
    }
    let (code, rw) = (attributes & attr::CODE != 0, attributes & attr::RW != 0);
    match access {
        Access::Read => !code || rw,
        Access::Write => !code && rw,
        Access::Exec => code,
    }
}
