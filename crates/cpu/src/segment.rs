//! Descriptors and segment loads (SDM vol. 3, 3.4 and 5).

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::state::{Seg, Segment, Shadow, attr};

/// A descriptor as it lies in a table; 16-byte system descriptors have their upper half too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// The first eight bytes.
    pub low: u64,
    /// The next eight, for system descriptors in long mode.
    pub high: u64,
}

/// System descriptor types (SDM vol. 3, table 3-2).
pub mod system {
    #![allow(missing_docs)]
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL_GATE16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT_GATE16: u32 = 6;
    pub const TRAP_GATE16: u32 = 7;
    pub const TSS: u32 = 9;
    pub const TSS_BUSY: u32 = 11;
    pub const CALL_GATE: u32 = 12;
    pub const INTERRUPT_GATE: u32 = 14;
    pub const TRAP_GATE: u32 = 15;
}

impl Descriptor {
    /// Attribute bits in the form of [`attr`].
    pub const fn attributes(&self) -> u32 {
        ((self.low >> 40) & 0xf0ff) as u32
    }

    /// The type bits.
    pub const fn kind(&self) -> u32 {
        self.attributes() & 0xf
    }

    /// Whether all of `bits` are set.
    pub const fn has(&self, bits: u32) -> bool {
        self.attributes() & bits == bits
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        ((self.low >> 45) & 3) as u8
    }

    /// Base address; the upper half counts where there is one.
    pub const fn base(&self) -> u64 {
        let low = ((self.low >> 16) & 0xff_ffff) | ((self.low >> 32) & 0xff00_0000);
        low | (self.high << 32)
    }

    /// Last valid offset in bytes.
    pub const fn limit(&self) -> u32 {
        let raw = ((self.low & 0xffff) | ((self.low >> 32) & 0xf_0000)) as u32;
        if self.has(attr::G) { (raw << 12) | 0xfff } else { raw }
    }

    /// A gate's target selector.
    pub const fn gate_selector(&self) -> u16 {
        (self.low >> 16) as u16
    }

    /// A gate's target offset; the upper half counts where there is one.
    pub const fn gate_offset(&self) -> u64 {
        (self.low & 0xffff) | ((self.low >> 32) & 0xffff_0000) | (self.high << 32)
    }

    /// The hidden part this descriptor gives a segment register.
    pub const fn segment(&self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), attributes: self.attributes() }
    }

    /// Whether it is a code segment.
    pub const fn is_code(&self) -> bool {
        self.has(attr::S | attr::CODE)
    }
}

/// The selector part of an error code.
pub const fn selector_code(selector: u16) -> u32 {
    (selector & 0xfffc) as u32
}

/// Whether the selector is null (index 0 of the GDT, any RPL).
pub const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// Requested privilege level of a selector.
pub const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

impl Cpu<'_> {
    /// Linear address of the descriptor that `selector` names, if `size` bytes lie in the table.
    fn descriptor_address(&self, selector: u16, size: u32) -> Option<u64> {
        let (base, limit) = if selector & 4 == 0 {
            (self.vcpu.gdtr.base, u32::from(self.vcpu.gdtr.limit))
        } else if self.vcpu.ldtr.has(attr::UNUSABLE) {
            return None;
        } else {
            (self.vcpu.ldtr.base, self.vcpu.ldtr.limit)
        };
        let offset = u32::from(selector & 0xfff8);
        (offset + size - 1 <= limit).then(|| base.wrapping_add(u64::from(offset)))
    }

    /// Reads the descriptor that `selector` names.
    ///
    /// # Errors
    /// `beyond` when it is outside its table; #PF and the like from reading it.
    pub fn read_descriptor(&mut self, selector: u16, beyond: Exception) -> Result<Descriptor> {
        let at = self.descriptor_address(selector, 8).ok_or(beyond)?;
        Ok(Descriptor { low: self.read_system(at)?, high: 0 })
    }

    /// Reads a system descriptor: 16 bytes in long mode.
    ///
    /// # Errors
    /// As [`Cpu::read_descriptor`]; also `beyond` if the upper half's type bits are not zero.
    pub fn read_system_descriptor(
        &mut self,
        selector: u16,
        beyond: Exception,
    ) -> Result<Descriptor> {
        if !self.vcpu.mode.long {
            return self.read_descriptor(selector, beyond);
        }
        let at = self.descriptor_address(selector, 16).ok_or(beyond)?;
        let low = self.read_system(at)?;
        let high: u64 = self.read_system(at.wrapping_add(8))?;
        if (high >> 40) & 0x1f != 0 {
            return Err(beyond);
        }
        Ok(Descriptor { low, high: high & 0xffff_ffff })
    }

    /// Sets bits of a descriptor's access byte in memory (accessed, busy).
    fn set_descriptor_bits(&mut self, selector: u16, clear: u8, set: u8) -> Result<()> {
        if let Some(at) = self.descriptor_address(selector, 8) {
            let byte: u8 = self.read_system(at.wrapping_add(5))?;
            let wanted = byte & !clear | set;
            if wanted != byte {
                self.write_system(at.wrapping_add(5), wanted)?;
            }
        }
        Ok(())
    }

    /// Marks a code or data descriptor accessed and returns it so.
    ///
    /// # Errors
    /// What the store raises.
    pub fn mark_accessed(&mut self, selector: u16, descriptor: Descriptor) -> Result<Descriptor> {
        if !descriptor.has(attr::ACCESSED) {
            self.set_descriptor_bits(selector, 0, 1)?;
        }
        Ok(Descriptor { low: descriptor.low | (1 << 40), ..descriptor })
    }

    /// `MOV Sreg`, `POP Sreg`, `LDS` and the like: loads any segment register but CS.
    ///
    /// # Errors
    /// #GP, #NP, #SS or #PF as SDM vol. 2 "MOV" has it.
    pub fn load_segment(&mut self, seg: Seg, selector: u16) -> Result<()> {
        if !self.vcpu.mode.protected || self.vcpu.mode.v86 {
            let old = *self.vcpu.seg(seg);
            let loaded = Segment { selector, base: u64::from(selector) << 4, ..old };
            self.vcpu.segments[seg as usize] =
                if self.vcpu.mode.v86 { v86_segment(selector) } else { loaded };
            self.vcpu.rederive();
            return Ok(());
        }
        let loaded = match seg {
            Seg::Ss => self.stack_segment(selector, self.vcpu.cpl, Exception::gp)?,
            _ => self.data_segment(selector)?,
        };
        self.vcpu.segments[seg as usize] = loaded;
        self.vcpu.rederive();
        Ok(())
    }

    fn data_segment(&mut self, selector: u16) -> Result<Segment> {
        if is_null(selector) {
            return Ok(Segment::null(selector));
        }
        let fault = Exception::gp(selector_code(selector));
        let descriptor = self.read_descriptor(selector, fault)?;
        let readable =
            descriptor.has(attr::S) && (!descriptor.is_code() || descriptor.has(attr::RW));
        let conforming = descriptor.is_code() && descriptor.has(attr::DC);
        let privileged = rpl(selector) <= descriptor.dpl() && self.vcpu.cpl <= descriptor.dpl();
        if !readable || !(conforming || privileged) {
            return Err(fault);
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// Checks and reads a stack segment for privilege level `cpl`; `fault` makes #GP or #TS.
    ///
    /// # Errors
    /// `fault` with the selector, or #SS if not present.
    pub fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        fault: fn(u32) -> Exception,
    ) -> Result<Segment> {
        if is_null(selector) {
            if self.vcpu.mode.bits == 64 && cpl < 3 && rpl(selector) == cpl {
                return Ok(Segment::null(selector));
            }
            return Err(fault(0));
        }
        let refused = fault(selector_code(selector));
        let descriptor = self.read_descriptor(selector, refused)?;
        let writable = descriptor.has(attr::S | attr::RW) && !descriptor.is_code();
        if !writable || rpl(selector) != cpl || descriptor.dpl() != cpl {
            return Err(refused);
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(Exception::ss(selector_code(selector)));
        }
        Ok(self.mark_accessed(selector, descriptor)?.segment(selector))
    }

    /// `LLDT`.
    ///
    /// # Errors
    /// #GP or #NP.
    pub fn load_ldt(&mut self, selector: u16) -> Result<()> {
        if is_null(selector) {
            self.vcpu.ldtr = Segment::null(selector);
            return Ok(());
        }
        let fault = Exception::gp(selector_code(selector));
        let descriptor = self.system_descriptor_in_gdt(selector, fault)?;
        if descriptor.has(attr::S) || descriptor.kind() != system::LDT {
            return Err(fault);
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        self.vcpu.ldtr = descriptor.segment(selector);
        Ok(())
    }

    /// `LTR`.
    ///
    /// # Errors
    /// #GP or #NP.
    pub fn load_task_register(&mut self, selector: u16) -> Result<()> {
        if is_null(selector) {
            return Err(Exception::GP0);
        }
        let fault = Exception::gp(selector_code(selector));
        let descriptor = self.system_descriptor_in_gdt(selector, fault)?;
        let kind_ok = descriptor.kind() == system::TSS
            || (descriptor.kind() == system::TSS16 && !self.vcpu.mode.long);
        if descriptor.has(attr::S) || !kind_ok {
            return Err(fault);
        }
        if !descriptor.has(attr::PRESENT) {
            return Err(Exception::np(selector_code(selector)));
        }
        self.set_descriptor_bits(selector, 0, 2)?;
        self.vcpu.tr = descriptor.segment(selector);
        self.vcpu.tr.attributes |= 2;
        Ok(())
    }

    fn system_descriptor_in_gdt(&mut self, selector: u16, fault: Exception) -> Result<Descriptor> {
        if selector & 4 != 0 {
            return Err(fault);
        }
        self.read_system_descriptor(selector, fault)
    }

    /// The descriptor as `LAR`, `LSL`, `VERR` and `VERW` may see it: `None` clears ZF.
    ///
    /// # Errors
    /// Only what reading the table raises.
    pub fn visible_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>> {
        if is_null(selector) || self.descriptor_address(selector, 8).is_none() {
            return Ok(None);
        }
        let descriptor = self.read_descriptor(selector, Exception::GP0)?;
        let conforming = descriptor.is_code() && descriptor.has(attr::DC);
        let privileged = rpl(selector) <= descriptor.dpl() && self.vcpu.cpl <= descriptor.dpl();
        Ok((conforming || privileged).then_some(descriptor))
    }

    /// Holds back interrupts and debug traps for one instruction after a load of SS.
    pub fn shadow_after_stack_load(&mut self) {
        self.vcpu.pending.shadow = Shadow::MovSs;
        self.vcpu.attention = true;
    }

    /// Nullifies data segments that the new, lower privilege may not keep (RET and IRET to an
    /// outer level).
    pub fn drop_privileged_segments(&mut self) {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let segment = self.vcpu.seg(seg);
            let conforming = segment.has(attr::CODE | attr::DC);
            if !segment.has(attr::UNUSABLE) && !conforming && segment.dpl() < self.vcpu.cpl {
                self.vcpu.segments[seg as usize] = Segment::null(0);
            }
        }
        self.vcpu.rederive();
    }
}

/// A segment register in virtual-8086 mode.
pub const fn v86_segment(selector: u16) -> Segment {
    let attributes = attr::PRESENT | attr::S | attr::RW | attr::ACCESSED | (3 << attr::DPL_SHIFT);
    Segment { selector, base: (selector as u64) << 4, limit: 0xffff, attributes }
}
