//! x87, SSE and AVX state in memory images: FXSAVE and the XSAVE family (SDM vol. 1, ch. 13), and
//! whether their instructions are available.
//!
//! XINUSE is defined by value: a component is in use if it is not in its initial state.

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::registers::{FxArea, Registers};
use crate::state::{Seg, cr};

/// Bytes of the legacy area and the XSAVE header.
const LEGACY_SIZE: usize = 512;
const HEADER_SIZE: usize = 64;
const AVX_OFFSET: usize = LEGACY_SIZE + HEADER_SIZE;
const AVX_SIZE: usize = 256;
const IMAGE_SIZE: usize = AVX_OFFSET + AVX_SIZE;
const XMM_OFFSET: usize = 160;
const ST_RANGE: std::ops::Range<usize> = 32..160;
const X87_RANGE: std::ops::Range<usize> = 0..24;
const MXCSR_AT: usize = 24;
/// MXCSR bits that may be set: the same on every host.
const MXCSR_MASK: u32 = 0xffff;
const MXCSR_INIT: u32 = 0x1f80;
const COMPACT: u64 = 1 << 63;

/// What kind of register file an instruction computes on; decides what makes it unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// General registers only.
    Integer,
    /// x87.
    X87,
    /// x87 instructions that do not wait for a pending exception (FNINIT, FNSTSW...).
    X87Control,
    /// `FWAIT`, which CR0.MP and TS govern.
    Wait,
    /// MMX.
    Mmx,
    /// SSE: XMM registers, legacy encoding.
    Sse,
    /// AVX: VEX encoding of vector instructions.
    Avx,
}

/// Which of the XSAVE instructions is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveForm {
    /// XSAVE: standard format, every requested component.
    Standard,
    /// XSAVEOPT: standard format, components in use.
    Optimized,
    /// XSAVEC and XSAVES: compacted format.
    Compact,
}

impl Cpu<'_> {
    /// Raises what an instruction of `unit` raises when its unit is off (SDM vol. 3, 2.5, 13.1).
    ///
    /// # Errors
    /// #NM or #UD.
    pub fn check_unit(&self, unit: Unit) -> Result<()> {
        let (cr0, cr4) = (self.vcpu.cr0, self.vcpu.cr4);
        let task_switched = cr0 & cr::CR0_TS != 0;
        let emulated = cr0 & cr::CR0_EM != 0;
        let (undefined, unavailable) = match unit {
            Unit::Integer => return Ok(()),
            Unit::X87 | Unit::X87Control => (false, emulated || task_switched),
            Unit::Wait => (false, task_switched && cr0 & cr::CR0_MP != 0),
            Unit::Mmx => (emulated, task_switched),
            Unit::Sse => (emulated || cr4 & cr::CR4_OSFXSR == 0, task_switched),
            Unit::Avx => (!self.avx_enabled(), task_switched),
        };
        match () {
            () if undefined => Err(Exception::UD),
            () if unavailable => Err(Exception::NM),
            () if matches!(unit, Unit::X87 | Unit::Mmx | Unit::Wait) => self.check_pending_x87(),
            () => Ok(()),
        }
    }

    /// #MF if an earlier x87 instruction left an unmasked exception (FSW.ES).
    fn check_pending_x87(&self) -> Result<()> {
        if self.vcpu.regs.fx.fsw() & 0x80 != 0 { Err(Exception::MF) } else { Ok(()) }
    }

    fn avx_enabled(&self) -> bool {
        let needed = cr::XCR0_SSE | cr::XCR0_AVX;
        self.vcpu.cr4 & cr::CR4_OSXSAVE != 0
            && self.vcpu.xcr0 & needed == needed
            && self.vcpu.mode.protected
            && !self.vcpu.mode.v86
    }

    /// #XM when the guest has a handler for it, else #UD (SDM vol. 3, 2.5, OSXMMEXCPT).
    pub fn simd_exception(&self) -> Exception {
        if self.vcpu.cr4 & cr::CR4_OSXMMEXCPT != 0 { Exception::XM } else { Exception::UD }
    }

    fn check_fxsave(&self, gva_offset: u64, alignment: u64) -> Result<()> {
        if self.vcpu.cr0 & cr::CR0_EM != 0 {
            return Err(Exception::NM);
        }
        if self.vcpu.cr0 & cr::CR0_TS != 0 {
            return Err(Exception::NM);
        }
        if gva_offset & (alignment - 1) != 0 { Err(Exception::GP0) } else { Ok(()) }
    }

    fn xmm_count(&self) -> usize {
        if self.vcpu.mode.bits == 64 { 16 } else { 8 }
    }

    /// `FXSAVE`.
    ///
    /// # Errors
    /// #NM, #GP(0) when misaligned, and what the store raises.
    pub fn fxsave(&mut self, seg: Seg, offset: u64) -> Result<()> {
        let gva = self.linear(seg, offset, 1, crate::paging::Access::Write)?;
        self.check_fxsave(gva, 16)?;
        let mut image = [0; LEGACY_SIZE];
        self.probe_write(seg, offset, LEGACY_SIZE as u64)?;
        self.read_bytes(seg, offset, &mut image)?;
        let regs = &self.vcpu.regs;
        image[..MXCSR_AT].copy_from_slice(&regs.fx.0[..MXCSR_AT]);
        image[ST_RANGE].copy_from_slice(&regs.fx.0[ST_RANGE]);
        store_mxcsr(&mut image, regs);
        if self.vcpu.cr4 & cr::CR4_OSFXSR != 0 {
            store_xmm(&mut image, regs, self.xmm_count());
        }
        self.write_bytes(seg, offset, &image)
    }

    /// `FXRSTOR`.
    ///
    /// # Errors
    /// #NM, #GP(0) when misaligned or MXCSR has reserved bits, and what the load raises.
    pub fn fxrstor(&mut self, seg: Seg, offset: u64) -> Result<()> {
        let gva = self.linear(seg, offset, 1, crate::paging::Access::Read)?;
        self.check_fxsave(gva, 16)?;
        let mut image = [0; LEGACY_SIZE];
        self.read_bytes(seg, offset, &mut image)?;
        let mxcsr = load_mxcsr(&image)?;
        let count = self.xmm_count();
        let with_sse = self.vcpu.cr4 & cr::CR4_OSFXSR != 0;
        let regs = &mut self.vcpu.regs;
        load_x87(&image, regs);
        if with_sse {
            regs.fx.set_mxcsr(mxcsr);
            load_xmm(&image, regs, count);
        }
        Ok(())
    }

    fn check_xsave(&mut self, seg: Seg, offset: u64) -> Result<()> {
        if self.vcpu.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(Exception::UD);
        }
        if self.vcpu.cr0 & cr::CR0_TS != 0 {
            return Err(Exception::NM);
        }
        let gva = self.linear(seg, offset, 1, crate::paging::Access::Read)?;
        if gva & 63 != 0 { Err(Exception::GP0) } else { Ok(()) }
    }

    /// Components in use that `requested` (EDX:EAX) and XCR0 both name.
    fn in_use(&self) -> u64 {
        let regs = &self.vcpu.regs;
        let init = FxArea::init();
        let x87 =
            regs.fx.0[X87_RANGE] != init.0[X87_RANGE] || regs.fx.0[ST_RANGE] != init.0[ST_RANGE];
        let count = self.xmm_count();
        let sse = regs.ymm[..count].iter().any(|r| r[0] | r[1] != 0);
        let avx = regs.ymm[..count].iter().any(|r| r[2] | r[3] != 0);
        u64::from(x87) | u64::from(sse) << 1 | u64::from(avx) << 2
    }

    /// `XGETBV`.
    ///
    /// # Errors
    /// #UD without OSXSAVE, #GP(0) for a register the model does not have.
    pub fn read_xcr(&self, index: u32) -> Result<u64> {
        if self.vcpu.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(Exception::UD);
        }
        match index {
            0 => Ok(self.vcpu.xcr0),
            1 => Ok(self.vcpu.xcr0 & self.in_use()),
            _ => Err(Exception::GP0),
        }
    }

    /// `XSAVE`, `XSAVEOPT`, `XSAVEC` and `XSAVES` of the components in `requested`.
    ///
    /// # Errors
    /// #UD, #NM, #GP(0) when misaligned, and what the store raises.
    pub fn xsave(&mut self, form: SaveForm, requested: u64, seg: Seg, offset: u64) -> Result<()> {
        self.check_xsave(seg, offset)?;
        let wanted = requested & self.vcpu.xcr0;
        let mut image = [0; IMAGE_SIZE];
        let has_avx = wanted & cr::XCR0_AVX != 0;
        let size = if has_avx { IMAGE_SIZE } else { AVX_OFFSET };
        let image = &mut image[..size];
        self.probe_write(seg, offset, size as u64)?;
        self.read_bytes(seg, offset, image)?;
        let mut used = self.in_use() & wanted;
        if form == SaveForm::Compact && self.vcpu.regs.fx.mxcsr() != MXCSR_INIT {
            used |= cr::XCR0_SSE & wanted;
        }
        let stored = if form == SaveForm::Standard { wanted } else { used };
        let regs = &self.vcpu.regs;
        if stored & cr::XCR0_X87 != 0 {
            image[..MXCSR_AT].copy_from_slice(&regs.fx.0[..MXCSR_AT]);
            image[ST_RANGE].copy_from_slice(&regs.fx.0[ST_RANGE]);
        }
        let mxcsr_when = match form {
            SaveForm::Compact => stored & cr::XCR0_SSE,
            _ => wanted & (cr::XCR0_SSE | cr::XCR0_AVX),
        };
        if mxcsr_when != 0 {
            store_mxcsr(image, regs);
        }
        if stored & cr::XCR0_SSE != 0 {
            store_xmm(image, regs, self.xmm_count());
        }
        if stored & cr::XCR0_AVX != 0 {
            store_ymm_high(image, regs, self.xmm_count());
        }
        let (bv, comp) = if form == SaveForm::Compact {
            (used, wanted | COMPACT)
        } else {
            let old = u64::from_le_bytes(image[512..520].try_into().expect("eight bytes"));
            (old & !wanted | used, u64::from_le_bytes(image[520..528].try_into().expect("8")))
        };
        image[512..520].copy_from_slice(&bv.to_le_bytes());
        image[520..528].copy_from_slice(&comp.to_le_bytes());
        self.write_bytes(seg, offset, image)
    }

    /// `XRSTOR` (and `XRSTORS` with `compact_only`) of the components in `requested`.
    ///
    /// # Errors
    /// #UD, #NM, #GP(0) for a malformed image, and what the load raises.
    pub fn xrstor(
        &mut self,
        compact_only: bool,
        requested: u64,
        seg: Seg,
        offset: u64,
    ) -> Result<()> {
        self.check_xsave(seg, offset)?;
        let wanted = requested & self.vcpu.xcr0;
        let mut image = [0; IMAGE_SIZE];
        self.read_bytes(seg, offset, &mut image[..AVX_OFFSET])?;
        let bv = u64::from_le_bytes(image[512..520].try_into().expect("eight bytes"));
        let comp = u64::from_le_bytes(image[520..528].try_into().expect("eight bytes"));
        let compact = comp & COMPACT != 0;
        check_header(&image, bv, comp, self.vcpu.xcr0, compact_only)?;
        let loads = bv & wanted;
        if loads & cr::XCR0_AVX != 0 {
            let at = offset.wrapping_add(AVX_OFFSET as u64);
            self.read_bytes(seg, at, &mut image[AVX_OFFSET..])?;
        }
        let mxcsr = self.restored_mxcsr(&image, wanted, bv, compact)?;
        let count = self.xmm_count();
        let regs = &mut self.vcpu.regs;
        let init = FxArea::init();
        if wanted & cr::XCR0_X87 != 0 {
            load_x87(if loads & cr::XCR0_X87 != 0 { &image } else { &init.0 }, regs);
        }
        if let Some(mxcsr) = mxcsr {
            regs.fx.set_mxcsr(mxcsr);
        }
        if wanted & cr::XCR0_SSE != 0 {
            let source = if loads & cr::XCR0_SSE != 0 { &image[..] } else { &[0; LEGACY_SIZE] };
            load_xmm(source, regs, count);
        }
        if wanted & cr::XCR0_AVX != 0 {
            if loads & cr::XCR0_AVX == 0 {
                image[AVX_OFFSET..].fill(0);
            }
            load_ymm_high(&image, regs, count);
        }
        Ok(())
    }

    fn restored_mxcsr(
        &self,
        image: &[u8],
        wanted: u64,
        bv: u64,
        compact: bool,
    ) -> Result<Option<u32>> {
        if compact {
            return match wanted & cr::XCR0_SSE != 0 {
                true if bv & cr::XCR0_SSE != 0 => load_mxcsr(image).map(Some),
                true => Ok(Some(MXCSR_INIT)),
                false => Ok(None),
            };
        }
        if wanted & (cr::XCR0_SSE | cr::XCR0_AVX) != 0 {
            return load_mxcsr(image).map(Some);
        }
        Ok(None)
    }
}

fn check_header(image: &[u8], bv: u64, comp: u64, xcr0: u64, compact_only: bool) -> Result<()> {
    let compact = comp & COMPACT != 0;
    let reserved_used = image[528..576].iter().any(|&b| b != 0);
    let bad = if compact {
        comp & !COMPACT & !xcr0 != 0 || bv & !comp != 0 || reserved_used
    } else {
        compact_only || comp != 0 || bv & !xcr0 != 0 || image[528..536].iter().any(|&b| b != 0)
    };
    if bad { Err(Exception::GP0) } else { Ok(()) }
}

fn store_mxcsr(image: &mut [u8], regs: &Registers) {
    image[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&regs.fx.mxcsr().to_le_bytes());
    image[MXCSR_AT + 4..MXCSR_AT + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

fn load_mxcsr(image: &[u8]) -> Result<u32> {
    let bytes = image[MXCSR_AT..MXCSR_AT + 4].try_into().expect("four bytes");
    let mxcsr = u32::from_le_bytes(bytes);
    if mxcsr & !MXCSR_MASK != 0 { Err(Exception::GP0) } else { Ok(mxcsr) }
}

fn load_x87(image: &[u8], regs: &mut Registers) {
    regs.fx.0[..5].copy_from_slice(&image[..5]);
    regs.fx.0[0] = regs.fx.0[0] & 0x7f | 0x40;
    regs.fx.0[1] &= 0x1f;
    // FSW.ES and B follow from the flags and masks, whatever the image says.
    let pending = regs.fx.fsw() & !regs.fx.fcw() & 0x3f != 0;
    let summary = if pending { 0x80 } else { 0 };
    regs.fx.0[2] = regs.fx.0[2] & 0x7f | summary;
    regs.fx.0[3] = regs.fx.0[3] & 0x7f | summary;
    for slot in 0..8 {
        let at = 32 + slot * 16;
        regs.fx.0[at..at + 10].copy_from_slice(&image[at..at + 10]);
    }
}

fn store_xmm(image: &mut [u8], regs: &Registers, count: usize) {
    for (index, register) in regs.ymm[..count].iter().enumerate() {
        let at = XMM_OFFSET + index * 16;
        image[at..at + 8].copy_from_slice(&register[0].to_le_bytes());
        image[at + 8..at + 16].copy_from_slice(&register[1].to_le_bytes());
    }
}

fn word(image: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes"))
}

fn load_xmm(image: &[u8], regs: &mut Registers, count: usize) {
    for (index, register) in regs.ymm[..count].iter_mut().enumerate() {
        let at = XMM_OFFSET + index * 16;
        register[0] = word(image, at);
        register[1] = word(image, at + 8);
    }
}

fn store_ymm_high(image: &mut [u8], regs: &Registers, count: usize) {
    for (index, register) in regs.ymm[..count].iter().enumerate() {
        let at = AVX_OFFSET + index * 16;
        image[at..at + 8].copy_from_slice(&register[2].to_le_bytes());
        image[at + 8..at + 16].copy_from_slice(&register[3].to_le_bytes());
    }
}

fn load_ymm_high(image: &[u8], regs: &mut Registers, count: usize) {
    for (index, register) in regs.ymm[..count].iter_mut().enumerate() {
        let at = AVX_OFFSET + index * 16;
        register[2] = word(image, at);
        register[3] = word(image, at + 8);
    }
}
