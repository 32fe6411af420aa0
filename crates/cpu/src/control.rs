//! Control and debug registers: what may be written, and what a write entails (SDM vol. 3, 2.5,
//! 17.2).

use types::PAGE_MASK;

use crate::Cpu;
use crate::exception::{Exception, Result};
use crate::state::{Seg, Table, attr, cr};

/// Bits of CR0 that exist.
const CR0_KNOWN: u64 = cr::CR0_PE
    | cr::CR0_MP
    | cr::CR0_EM
    | cr::CR0_TS
    | cr::CR0_ET
    | cr::CR0_NE
    | cr::CR0_WP
    | cr::CR0_AM
    | cr::CR0_NW
    | cr::CR0_CD
    | cr::CR0_PG;

/// CR0 bits whose change alters what a page walk answers.
const CR0_PAGING: u64 = cr::CR0_PG | cr::CR0_WP | cr::CR0_PE;
/// Likewise for CR4.
const CR4_PAGING: u64 =
    cr::CR4_PSE | cr::CR4_PAE | cr::CR4_PGE | cr::CR4_PCIDE | cr::CR4_SMEP | cr::CR4_SMAP;

impl Cpu<'_> {
    /// Reads CR0, CR2, CR3, CR4 or CR8.
    ///
    /// # Errors
    /// #UD for another number, #GP(0) outside CPL 0.
    pub fn read_cr(&mut self, index: u8) -> Result<u64> {
        self.require_cpl0()?;
        match index {
            0 => Ok(self.vcpu.cr0),
            2 => Ok(self.vcpu.cr2),
            3 => Ok(self.vcpu.cr3),
            4 => Ok(self.vcpu.cr4),
            8 => Ok(u64::from(self.vcpu.lapic.cr8())),
            _ => Err(Exception::UD),
        }
    }

    /// Writes CR0, CR2, CR3, CR4 or CR8.
    ///
    /// # Errors
    /// #UD for another number, #GP(0) for a value that is not allowed or outside CPL 0.
    pub fn write_cr(&mut self, index: u8, value: u64) -> Result<()> {
        self.require_cpl0()?;
        match index {
            0 => self.write_cr0(value),
            2 => {
                self.vcpu.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value > 15 => Err(Exception::GP0),
            8 => {
                self.vcpu.lapic.set_cr8(value as u8);
                self.vcpu.attention = true;
                Ok(())
            }
            _ => Err(Exception::UD),
        }
    }

    /// #GP(0) unless CPL is 0.
    ///
    /// # Errors
    /// #GP(0).
    pub fn require_cpl0(&self) -> Result<()> {
        if self.vcpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
    }

    /// `MOV CR0`, and the low bits by `LMSW` and `CLTS`.
    ///
    /// # Errors
    /// #GP(0) as SDM vol. 2 "MOV CRn" has it.
    pub fn write_cr0(&mut self, value: u64) -> Result<()> {
        let (paging, protected) = (value & cr::CR0_PG != 0, value & cr::CR0_PE != 0);
        let cache_bad = value & (cr::CR0_NW | cr::CR0_CD) == cr::CR0_NW;
        if value >> 32 != 0 || (paging && !protected) || cache_bad {
            return Err(Exception::GP0);
        }
        let value = value & CR0_KNOWN | cr::CR0_ET;
        let old = self.vcpu.cr0;
        let was_paging = old & cr::CR0_PG != 0;
        if paging && !was_paging {
            self.enter_paging()?;
        } else if !paging && was_paging {
            self.leave_paging()?;
        }
        self.vcpu.cr0 = value;
        if (old ^ value) & CR0_PAGING != 0 {
            self.vcpu.tlb.flush();
        }
        if (old ^ value) & cr::CR0_PE != 0 {
            self.vcpu.cpl = 0;
        }
        self.vcpu.attention = true;
        self.vcpu.rederive();
        Ok(())
    }

    fn enter_paging(&mut self) -> Result<()> {
        if self.vcpu.msrs.efer & cr::EFER_LME != 0 {
            let wrong = self.vcpu.cr4 & cr::CR4_PAE == 0 || self.vcpu.seg(Seg::Cs).has(attr::L);
            if wrong {
                return Err(Exception::GP0);
            }
            self.vcpu.msrs.efer |= cr::EFER_LMA;
        } else if self.vcpu.cr4 & cr::CR4_PAE != 0 {
            self.load_pdptrs(self.vcpu.cr3)?;
        }
        Ok(())
    }

    fn leave_paging(&mut self) -> Result<()> {
        if self.vcpu.mode.bits == 64 || self.vcpu.cr4 & cr::CR4_PCIDE != 0 {
            return Err(Exception::GP0);
        }
        self.vcpu.msrs.efer &= !cr::EFER_LMA;
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Result<()> {
        let mut value = value;
        if self.vcpu.mode.long {
            if self.vcpu.cr4 & cr::CR4_PCIDE != 0 {
                value &= !(1 << 63);
            }
            if value >> crate::paging::PHYSICAL_BITS != 0 {
                return Err(Exception::GP0);
            }
        } else {
            value &= 0xffff_ffff;
            if self.vcpu.cr4 & cr::CR4_PAE != 0 && self.vcpu.cr0 & cr::CR0_PG != 0 {
                self.load_pdptrs(value)?;
            }
        }
        let (from, to) = (self.vcpu.cr3 & !PAGE_MASK, value & !PAGE_MASK);
        self.vcpu.cr3 = value;
        // Cached walks are right as long as they begin at the same table.
        match self.vcpu.mode.long {
            true if from == to => {}
            true => self.turn_tlb(from, to),
            // They begin at PDPTRs, which are loaded each time.
            false => self.vcpu.tlb.flush(),
        }
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<()> {
        let old = self.vcpu.cr4;
        let long = self.vcpu.mode.long;
        let pae_dropped = long && value & cr::CR4_PAE == 0;
        let pcid_set = value & !old & cr::CR4_PCIDE != 0;
        let pcid_bad = pcid_set && (!long || self.vcpu.cr3 & 0xfff != 0);
        if value & !self.vcpu.model.cr4_mask() != 0 || pae_dropped || pcid_bad {
            return Err(Exception::GP0);
        }
        let reload = cr::CR4_PAE | cr::CR4_PGE | cr::CR4_PSE | cr::CR4_SMEP;
        let legacy_pae = !long && self.vcpu.cr0 & cr::CR0_PG != 0 && value & cr::CR4_PAE != 0;
        if legacy_pae && (old ^ value) & reload != 0 {
            self.load_pdptrs(self.vcpu.cr3)?;
        }
        self.vcpu.cr4 = value;
        if (old ^ value) & CR4_PAGING != 0 {
            self.vcpu.tlb.flush();
        }
        self.vcpu.attention = true;
        self.vcpu.rederive();
        Ok(())
    }

    /// `XSETBV` of XCR0.
    ///
    /// # Errors
    /// #GP(0) for another register or a combination the model does not have.
    pub fn write_xcr(&mut self, index: u32, value: u64) -> Result<()> {
        self.require_cpl0()?;
        let avx_alone = value & (cr::XCR0_AVX | cr::XCR0_SSE) == cr::XCR0_AVX;
        let bad = value & !self.vcpu.model.xcr0_mask() != 0 || value & cr::XCR0_X87 == 0;
        if index != 0 || avx_alone || bad {
            return Err(Exception::GP0);
        }
        self.vcpu.xcr0 = value;
        self.vcpu.attention = true;
        Ok(())
    }

    /// Loads GDTR.
    pub fn load_gdt(&mut self, table: Table) {
        self.vcpu.gdtr = table;
    }

    /// Loads IDTR.
    pub fn load_idt(&mut self, table: Table) {
        self.vcpu.idtr = table;
    }

    /// The real number of a debug register: DR4 and DR5 alias DR6 and DR7 unless CR4.DE.
    fn debug_index(&self, index: u8) -> Result<u8> {
        match index {
            4 | 5 if self.vcpu.cr4 & cr::CR4_DE != 0 => Err(Exception::UD),
            4 | 5 => Ok(index + 2),
            0..=7 => Ok(index),
            _ => Err(Exception::UD),
        }
    }

    fn check_debug_access(&mut self) -> Result<()> {
        self.require_cpl0()?;
        if self.vcpu.dr7 & (1 << 13) != 0 {
            return Err(Exception::db(1 << 13));
        }
        Ok(())
    }

    /// Reads a debug register.
    ///
    /// # Errors
    /// #UD, #GP(0), or #DB when DR7.GD is set.
    pub fn read_dr(&mut self, index: u8) -> Result<u64> {
        let index = self.debug_index(index)?;
        self.check_debug_access()?;
        Ok(match index {
            6 => self.vcpu.dr6,
            7 => self.vcpu.dr7,
            _ => self.vcpu.dr[index as usize],
        })
    }

    /// Writes a debug register.
    ///
    /// # Errors
    /// #UD, #GP(0), or #DB when DR7.GD is set.
    pub fn write_dr(&mut self, index: u8, value: u64) -> Result<()> {
        let index = self.debug_index(index)?;
        self.check_debug_access()?;
        if index >= 6 && value >> 32 != 0 {
            return Err(Exception::GP0);
        }
        match index {
            6 => self.vcpu.dr6 = value & 0xe00f | 0xffff_0ff0,
            7 => self.vcpu.dr7 = value & 0xffff_2fff | 0x400,
            _ => self.vcpu.dr[index as usize] = value,
        }
        self.vcpu.attention = true;
        self.vcpu.rederive();
        Ok(())
    }
}
