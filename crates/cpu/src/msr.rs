//! Model-specific registers (SDM vol. 4).

use crate::Cpu;
use crate::cpuid::ARCH_CAPABILITIES;
use crate::exception::{Exception, Result};
use crate::state::{Seg, cr};

/// Numbers of the MSRs that the model has.
pub mod index {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDATE: u32 = 0x79;
    pub const BIOS_SIGN: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAP: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const MTRR_PHYS_BASE0: u32 = 0x200;
    pub const MTRR_PHYS_LAST: u32 = 0x20f;
    pub const MTRR_FIX_64K: u32 = 0x250;
    pub const MTRR_FIX_16K_80000: u32 = 0x258;
    pub const MTRR_FIX_16K_A0000: u32 = 0x259;
    pub const MTRR_FIX_4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX_4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// IA32_MTRRCAP: eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = 0x508;
/// IA32_MISC_ENABLE bits that are always set: fast strings, no BTS, no PEBS.
const MISC_ENABLE_FIXED: u64 = 1 | (1 << 11) | (1 << 12);

/// IBRS, STIBP, SSBD, BHI_DIS_S.
const SPEC_CTRL_MASK: u64 = 0x407;

impl Cpu<'_> {
    /// The time-stamp counter: virtual nanoseconds plus the guest's offset.
    pub fn tsc(&self) -> u64 {
        let now = self.bus.now(self.vcpu.branches);
        now.0.wrapping_add(self.vcpu.msrs.tsc_offset)
    }

    /// `RDTSC`, `RDTSCP`.
    ///
    /// # Errors
    /// #GP(0) when CR4.TSD forbids it.
    pub fn read_tsc(&self) -> Result<u64> {
        if self.vcpu.cr4 & cr::CR4_TSD != 0 && self.vcpu.cpl != 0 {
            return Err(Exception::GP0);
        }
        Ok(self.tsc())
    }

    /// `RDMSR`.
    ///
    /// # Errors
    /// #GP(0) for an MSR the model does not have, or outside CPL 0.
    pub fn read_msr(&mut self, msr: u32) -> Result<u64> {
        self.require_cpl0()?;
        let msrs = &self.vcpu.msrs;
        Ok(match msr {
            index::TSC => self.tsc(),
            index::APIC_BASE => self.vcpu.lapic.base_msr(),
            index::TSC_ADJUST => msrs.tsc_adjust,
            index::PLATFORM_ID | index::MCG_CAP | index::MCG_STATUS => 0,
            index::PERF_STATUS | index::XSS => 0,
            index::FEATURE_CONTROL => 1,
            index::BIOS_SIGN => 1 << 32,
            index::MTRR_CAP => MTRR_CAP,
            index::ARCH_CAP => ARCH_CAPABILITIES,
            index::MISC_ENABLE => msrs.misc_enable | MISC_ENABLE_FIXED,
            index::FS_BASE => self.vcpu.seg(Seg::Fs).base,
            index::GS_BASE => self.vcpu.seg(Seg::Gs).base,
            index::TSC_DEADLINE => self.vcpu.lapic.tsc_deadline(),
            index::X2APIC_FIRST..=index::X2APIC_LAST => return self.read_x2apic(msr),
            _ => *self.plain_msr(msr).ok_or(Exception::GP0)?,
        })
    }

    /// MSRs that hold what was written.
    fn plain_msr(&mut self, msr: u32) -> Option<&mut u64> {
        let msrs = &mut self.vcpu.msrs;
        let variable = msr.wrapping_sub(index::MTRR_PHYS_BASE0) as usize;
        let fixed_4k = msr.wrapping_sub(index::MTRR_FIX_4K_FIRST) as usize;
        Some(match msr {
            index::SYSENTER_CS => &mut msrs.sysenter_cs,
            index::SYSENTER_ESP => &mut msrs.sysenter_esp,
            index::SYSENTER_EIP => &mut msrs.sysenter_eip,
            index::DEBUGCTL => &mut msrs.debugctl,
            index::SPEC_CTRL => &mut msrs.spec_ctrl,
            index::MTRR_PHYS_BASE0..=index::MTRR_PHYS_LAST => &mut msrs.mtrr_variable[variable],
            index::MTRR_FIX_64K => &mut msrs.mtrr_fixed[0],
            index::MTRR_FIX_16K_80000 => &mut msrs.mtrr_fixed[1],
            index::MTRR_FIX_16K_A0000 => &mut msrs.mtrr_fixed[2],
            index::MTRR_FIX_4K_FIRST..=index::MTRR_FIX_4K_LAST => {
                &mut msrs.mtrr_fixed[3 + fixed_4k]
            }
            index::PAT => &mut msrs.pat,
            index::MTRR_DEF_TYPE => &mut msrs.mtrr_def_type,
            index::EFER => &mut msrs.efer,
            index::STAR => &mut msrs.star,
            index::LSTAR => &mut msrs.lstar,
            index::CSTAR => &mut msrs.cstar,
            index::SFMASK => &mut msrs.sfmask,
            index::KERNEL_GS_BASE => &mut msrs.kernel_gs_base,
            index::TSC_AUX => &mut msrs.tsc_aux,
            _ => return None,
        })
    }

    /// `WRMSR`.
    ///
    /// # Errors
    /// #GP(0) for an MSR the model does not have, a value it does not take, or outside CPL 0.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Result<()> {
        self.require_cpl0()?;
        match msr {
            index::TSC => self.set_tsc(value),
            index::TSC_ADJUST => {
                let delta = value.wrapping_sub(self.vcpu.msrs.tsc_adjust);
                self.vcpu.msrs.tsc_adjust = value;
                self.vcpu.msrs.tsc_offset = self.vcpu.msrs.tsc_offset.wrapping_add(delta);
                self.tsc_was_set();
            }
            index::APIC_BASE => self.write_apic_base(value)?,
            index::EFER => self.write_efer(value)?,
            index::FS_BASE | index::GS_BASE => self.write_segment_base(msr, value)?,
            index::TSC_DEADLINE => self.write_tsc_deadline(value),
            index::X2APIC_FIRST..=index::X2APIC_LAST => self.write_x2apic(msr, value)?,
            index::PRED_CMD | index::BIOS_UPDATE | index::BIOS_SIGN | index::MCG_STATUS => {}
            index::XSS if value == 0 => {}
            index::MISC_ENABLE => self.vcpu.msrs.misc_enable = value & ((1 << 18) | 1),
            index::MTRR_CAP | index::ARCH_CAP => return Err(Exception::GP0),
            _ => self.write_plain_msr(msr, value)?,
        }
        Ok(())
    }

    fn write_plain_msr(&mut self, msr: u32, value: u64) -> Result<()> {
        let allowed = match msr {
            index::LSTAR
            | index::CSTAR
            | index::KERNEL_GS_BASE
            | index::SYSENTER_ESP
            | index::SYSENTER_EIP => types::Gva(value).is_canonical(),
            index::PAT => value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4..=7)),
            index::TSC_AUX | index::SFMASK => value >> 32 == 0,
            index::DEBUGCTL => value & !3 == 0,
            index::SPEC_CTRL => value & !SPEC_CTRL_MASK == 0,
            index::MTRR_DEF_TYPE => value & !0xcff == 0,
            _ => true,
        };
        if !allowed {
            return Err(Exception::GP0);
        }
        *self.plain_msr(msr).ok_or(Exception::GP0)? = value;
        Ok(())
    }

    fn set_tsc(&mut self, value: u64) {
        let delta = value.wrapping_sub(self.tsc());
        self.vcpu.msrs.tsc_offset = self.vcpu.msrs.tsc_offset.wrapping_add(delta);
        self.vcpu.msrs.tsc_adjust = self.vcpu.msrs.tsc_adjust.wrapping_add(delta);
        self.tsc_was_set();
    }

    fn write_efer(&mut self, value: u64) -> Result<()> {
        let known = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;
        let old = self.vcpu.msrs.efer;
        let lme_changes = (old ^ value) & cr::EFER_LME != 0;
        if value & !known != 0 || (lme_changes && self.vcpu.cr0 & cr::CR0_PG != 0) {
            return Err(Exception::GP0);
        }
        self.vcpu.msrs.efer = value & !cr::EFER_LMA | old & cr::EFER_LMA;
        if (old ^ value) & cr::EFER_NXE != 0 {
            self.vcpu.tlb.flush();
        }
        self.vcpu.rederive();
        Ok(())
    }

    fn write_segment_base(&mut self, msr: u32, value: u64) -> Result<()> {
        if !types::Gva(value).is_canonical() {
            return Err(Exception::GP0);
        }
        let seg = if msr == index::FS_BASE { Seg::Fs } else { Seg::Gs };
        self.set_segment_base(seg, value);
        Ok(())
    }

    /// Sets the base of FS or GS.
    pub fn set_segment_base(&mut self, seg: Seg, base: u64) {
        self.vcpu.segments[seg as usize].base = base;
        self.vcpu.mode.bases[seg as usize] = base;
    }

    /// `SWAPGS`.
    ///
    /// # Errors
    /// #UD outside 64-bit mode, #GP(0) outside CPL 0.
    pub fn swap_gs(&mut self) -> Result<()> {
        if self.vcpu.mode.bits != 64 {
            return Err(Exception::UD);
        }
        self.require_cpl0()?;
        let base = self.vcpu.seg(Seg::Gs).base;
        let other = std::mem::replace(&mut self.vcpu.msrs.kernel_gs_base, base);
        self.set_segment_base(Seg::Gs, other);
        Ok(())
    }
}
