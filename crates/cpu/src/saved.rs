//! The vCPU's saved form.

use minicbor::{Decode, Encode};
use saved::{RestoreError, Saved, Sections};

use crate::registers::{FxArea, gpr};
use crate::state::{Activity, Msrs, Segment, Shadow, Table, Vcpu};

/// A segment register: selector, base, limit, attributes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SegmentSaved(#[n(0)] u16, #[n(1)] u64, #[n(2)] u32, #[n(3)] u32);

impl SegmentSaved {
    fn of(segment: &Segment) -> SegmentSaved {
        let Segment { selector, base, limit, attributes } = *segment;
        SegmentSaved(selector, base, limit, attributes)
    }

    fn segment(&self) -> Segment {
        Segment { selector: self.0, base: self.1, limit: self.2, attributes: self.3 }
    }
}

/// Everything a vCPU is, less its local APIC (a section of its own) and what is derived.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[allow(missing_docs)]
pub struct VcpuSaved {
    #[n(0)]
    pub gpr: [u64; 16],
    #[n(1)]
    pub rip: u64,
    #[n(2)]
    pub rflags: u64,
    #[n(3)]
    pub ymm: Vec<[u64; 4]>,
    #[cbor(n(4), with = "minicbor::bytes")]
    pub x87: Vec<u8>,
    #[n(5)]
    pub segments: Vec<SegmentSaved>,
    #[n(6)]
    pub ldtr: SegmentSaved,
    #[n(7)]
    pub tr: SegmentSaved,
    #[n(8)]
    pub gdtr: (u64, u16),
    #[n(9)]
    pub idtr: (u64, u16),
    #[n(10)]
    pub cpl: u8,
    #[n(11)]
    pub control: [u64; 5],
    #[n(12)]
    pub debug: [u64; 6],
    #[n(13)]
    pub pdptrs: [u64; 4],
    #[n(14)]
    pub msrs: Vec<u64>,
    #[n(15)]
    pub mtrr: Vec<u64>,
    #[n(16)]
    pub branches: u64,
    #[n(17)]
    pub iterations: u64,
    #[n(18)]
    pub activity: u8,
    #[n(19)]
    pub shadow: u8,
    #[n(20)]
    pub pending: (u64, bool, bool),
}

impl Saved for VcpuSaved {
    const NAME: &'static str = "vcpu";
    const VERSION: u16 = 1;
}

/// Bytes of the FXSAVE area that are state: x87 and MXCSR, without XMM.
const X87_SIZE: usize = 160;

impl Vcpu {
    /// Adds the vCPU's sections.
    pub fn save(&self, sections: &mut Sections) {
        sections.save(self.index, &self.to_saved());
        sections.save(self.index, &self.lapic.save());
    }

    /// Takes the vCPU's sections and rederives.
    ///
    /// # Errors
    /// [`RestoreError`] when a section is missing or malformed.
    pub fn restore(&mut self, sections: &mut Sections) -> Result<(), RestoreError> {
        let state: VcpuSaved = sections.restore(self.index)?;
        self.take_saved(state).ok_or_else(|| RestoreError::Malformed {
            name: VcpuSaved::NAME.to_owned(),
            detail: "a list has the wrong length or an enumeration a wrong value".to_owned(),
        })?;
        let lapic = sections.restore(self.index)?;
        self.lapic.restore(lapic)?;
        self.rederive();
        Ok(())
    }

    fn to_saved(&self) -> VcpuSaved {
        // Destructured so that a field added to the vCPU cannot be forgotten here.
        let Vcpu {
            index: _,
            regs,
            segments,
            ldtr,
            tr,
            gdtr,
            idtr,
            cpl,
            cr0,
            cr2,
            cr3,
            cr4,
            xcr0,
            dr,
            dr6,
            dr7,
            pdptrs,
            msrs,
            lapic: _,
            branches,
            iterations,
            activity,
            pending,
            model: _,
            tlb: _,
            mode: _,
            attention: _,
            patience: _,
        } = self;
        VcpuSaved {
            gpr: regs.gpr[..16].try_into().expect("sixteen"),
            rip: regs.gpr[gpr::RIP],
            rflags: regs.rflags(),
            ymm: regs.ymm.to_vec(),
            x87: regs.fx.0[..X87_SIZE].to_vec(),
            segments: segments.iter().map(SegmentSaved::of).collect(),
            ldtr: SegmentSaved::of(ldtr),
            tr: SegmentSaved::of(tr),
            gdtr: (gdtr.base, gdtr.limit),
            idtr: (idtr.base, idtr.limit),
            cpl: *cpl,
            control: [*cr0, *cr2, *cr3, *cr4, *xcr0],
            debug: [dr[0], dr[1], dr[2], dr[3], *dr6, *dr7],
            pdptrs: *pdptrs,
            msrs: plain_msrs(msrs).to_vec(),
            mtrr: msrs.mtrr_fixed.iter().chain(&msrs.mtrr_variable).copied().collect(),
            branches: *branches,
            iterations: *iterations,
            activity: *activity as u8,
            shadow: pending.shadow as u8,
            pending: (pending.debug, pending.nmi, pending.nmi_blocked),
        }
    }

    fn take_saved(&mut self, state: VcpuSaved) -> Option<()> {
        self.regs.gpr[..16].copy_from_slice(&state.gpr);
        self.regs.gpr[gpr::RIP] = state.rip;
        self.regs.set_rflags(state.rflags);
        self.regs.ymm = state.ymm.try_into().ok()?;
        self.regs.fx = FxArea::init();
        self.regs.fx.0[..X87_SIZE].copy_from_slice(state.x87.get(..X87_SIZE)?);
        let segments: Vec<Segment> = state.segments.iter().map(SegmentSaved::segment).collect();
        self.segments = segments.try_into().ok()?;
        (self.ldtr, self.tr) = (state.ldtr.segment(), state.tr.segment());
        self.gdtr = Table { base: state.gdtr.0, limit: state.gdtr.1 };
        self.idtr = Table { base: state.idtr.0, limit: state.idtr.1 };
        self.cpl = (state.cpl < 4).then_some(state.cpl)?;
        [self.cr0, self.cr2, self.cr3, self.cr4, self.xcr0] = state.control;
        self.dr.copy_from_slice(&state.debug[..4]);
        (self.dr6, self.dr7) = (state.debug[4], state.debug[5]);
        self.pdptrs = state.pdptrs;
        restore_msrs(&mut self.msrs, &state.msrs, &state.mtrr)?;
        (self.branches, self.iterations) = (state.branches, state.iterations);
        self.activity = *[Activity::Running, Activity::Halted, Activity::Shutdown]
            .get(usize::from(state.activity))?;
        self.pending.shadow =
            *[Shadow::None, Shadow::Sti, Shadow::MovSs].get(usize::from(state.shadow))?;
        (self.pending.debug, self.pending.nmi, self.pending.nmi_blocked) = state.pending;
        self.attention = true;
        self.tlb.flush();
        Some(())
    }
}

fn plain_msrs(msrs: &Msrs) -> [u64; 17] {
    let Msrs {
        efer,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
        tsc_offset,
        tsc_adjust,
        misc_enable,
        mtrr_def_type,
        mtrr_fixed: _,
        mtrr_variable: _,
        debugctl,
        spec_ctrl,
    } = *msrs;
    [
        efer,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
        tsc_offset,
        tsc_adjust,
        misc_enable,
        mtrr_def_type,
        debugctl,
        spec_ctrl,
    ]
}

fn restore_msrs(msrs: &mut Msrs, plain: &[u64], mtrr: &[u64]) -> Option<()> {
    let plain: [u64; 17] = plain.try_into().ok()?;
    [
        msrs.efer,
        msrs.star,
        msrs.lstar,
        msrs.cstar,
        msrs.sfmask,
        msrs.kernel_gs_base,
        msrs.sysenter_cs,
        msrs.sysenter_esp,
        msrs.sysenter_eip,
        msrs.pat,
        msrs.tsc_aux,
        msrs.tsc_offset,
        msrs.tsc_adjust,
        msrs.misc_enable,
        msrs.mtrr_def_type,
        msrs.debugctl,
        msrs.spec_ctrl,
    ] = plain;
    msrs.mtrr_fixed.copy_from_slice(mtrr.get(..11)?);
    msrs.mtrr_variable.copy_from_slice(mtrr.get(11..27)?);
    (mtrr.len() == 27).then_some(())
}
