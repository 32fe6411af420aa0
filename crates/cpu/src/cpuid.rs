//! CPU models as data: what CPUID answers (SDM vol. 2, CPUID; AMD APM vol. 3 for 8000_xxxx).
//!
//! The model is ours, not the host's. Nothing here depends on the host.

use crate::Cpu;
use crate::paging::PHYSICAL_BITS;
use crate::registers::gpr;
use crate::state::cr;

/// TSC and local APIC timer frequency, Hz: the TSC counts nanoseconds of virtual time.
pub const TSC_HZ: u32 = 1_000_000_000;

/// A CPU model; the names are the levels of the x86-64 psABI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// x86-64-v2 with AES and PCLMULQDQ.
    V2,
    /// x86-64-v3 with AES, PCLMULQDQ, SHA and ADX.
    #[default]
    V3,
}

/// Feature bits of one register of one leaf.
struct Bits {
    v2: u32,
    v3: u32,
}

impl Bits {
    const fn of(&self, model: Model) -> u32 {
        match model {
            Model::V2 => self.v2,
            Model::V3 => self.v2 | self.v3,
        }
    }
}

const fn bits(list: &[u32]) -> u32 {
    let (mut sum, mut index) = (0, 0);
    while index < list.len() {
        sum |= 1 << list[index];
        index += 1;
    }
    sum
}

/// fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2.
const LEAF1_EDX: u32 =
    bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
const LEAF1_EDX_APIC: u32 = 1 << 9;
/// v2: sse3 pclmul ssse3 cx16 pcid sse4.1 sse4.2 x2apic popcnt tsc-deadline aes hypervisor;
/// v3: fma movbe xsave avx f16c.
const LEAF1_ECX: Bits = Bits {
    v2: bits(&[0, 1, 9, 13, 17, 19, 20, 21, 23, 24, 25, 31]),
    v3: bits(&[12, 22, 26, 28, 29]),
};
const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
/// v2: fsgsbase tsc_adjust fdp-on-exceptions-only smep erms invpcid no-fcs-fds smap clflushopt
/// clwb; v3: bmi1 avx2 bmi2 adx sha.
const LEAF7_EBX: Bits =
    Bits { v2: bits(&[0, 1, 6, 7, 9, 10, 13, 20, 23, 24]), v3: bits(&[3, 5, 8, 19, 29]) };
/// umip.
const LEAF7_ECX: u32 = bits(&[2]);
/// spec_ctrl stibp arch_capabilities ssbd: there are no side channels to close, and saying so
/// keeps kernels from paying for mitigations.
const LEAF7_EDX: u32 = bits(&[26, 27, 29, 31]);
/// bhi_ctrl: lets kernels close BHI by a bit of IA32_SPEC_CTRL instead of a loop per system call.
const LEAF72_EDX: u32 = bits(&[4]);
/// v2: lahf prefetchw; v3: lzcnt.
const LEAF_EXT1_ECX: Bits = Bits { v2: bits(&[0, 8]), v3: bits(&[5]) };
/// syscall nx 1g-pages rdtscp lm.
const LEAF_EXT1_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// xsaveopt xsavec xgetbv1 xsaves.
const LEAFD1_EAX: u32 = bits(&[0, 1, 2, 3]);

/// IA32_ARCH_CAPABILITIES: not affected by anything that has a bit for it.
pub const ARCH_CAPABILITIES: u64 = (1 << 0)
    | (1 << 1)
    | (1 << 3)
    | (1 << 4)
    | (1 << 5)
    | (1 << 6)
    | (1 << 8)
    | (1 << 13)
    | (1 << 14)
    | (1 << 15)
    | (1 << 20)
    | (1 << 24)
    | (1 << 26)
    | (1 << 27)
    | (1 << 62);

/// CPUID's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

const fn leaf(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Leaf {
    Leaf { eax, ebx, ecx, edx }
}

const LEAF_MAX: u32 = 0x16;
const LEAF_EXT_MAX: u32 = 0x8000_0008;

/// Deterministic cache parameters: (type, level, ways, sets), 64-byte lines.
const CACHES: [(u32, u32, u32, u32); 4] =
    [(1, 1, 8, 64), (2, 1, 8, 64), (3, 2, 16, 1024), (3, 3, 16, 16384)];

impl Model {
    /// Family, model and stepping as in CPUID 1 EAX: a Westmere, a Haswell (server).
    ///
    /// Programs built for several processors (GCC's `__builtin_cpu_is` and `target_clones`) infer
    /// instructions from these numbers and do not ask for each: the processor named must not have
    /// more than the model. After a Haswell, most have AVX-512 in one variant or another.
    pub const fn signature(self) -> u32 {
        match self {
            Model::V2 => 0x0002_06c2,
            Model::V3 => 0x0003_06f2,
        }
    }

    /// Whether the model has XSAVE and AVX.
    pub const fn has_xsave(self) -> bool {
        matches!(self, Model::V3)
    }

    /// XCR0 bits that may be set.
    pub const fn xcr0_mask(self) -> u64 {
        match self {
            Model::V2 => 0,
            Model::V3 => cr::XCR0_X87 | cr::XCR0_SSE | cr::XCR0_AVX,
        }
    }

    /// CR4 bits that may be set.
    pub const fn cr4_mask(self) -> u64 {
        let common = cr::CR4_TSD
            | cr::CR4_DE
            | cr::CR4_PSE
            | cr::CR4_PAE
            | cr::CR4_MCE
            | cr::CR4_PGE
            | cr::CR4_PCE
            | cr::CR4_OSFXSR
            | cr::CR4_OSXMMEXCPT
            | cr::CR4_UMIP
            | cr::CR4_FSGSBASE
            | cr::CR4_PCIDE
            | cr::CR4_SMEP
            | cr::CR4_SMAP;
        match self {
            Model::V2 => common,
            Model::V3 => common | cr::CR4_OSXSAVE,
        }
    }

    /// The name as in `--cpu`.
    pub const fn name(self) -> &'static str {
        match self {
            Model::V2 => "v2",
            Model::V3 => "v3",
        }
    }

    /// What CPUID answers; `vcpu` is the APIC id, `cr4` and `xcr0` show through in a few bits.
    pub fn cpuid(self, function: u32, index: u32, vcpu: u32, cr4: u64, xcr0: u64) -> Leaf {
        match function {
            0 => leaf(LEAF_MAX, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
            1 => self.leaf_1(vcpu, cr4),
            2 => leaf(0x00fe_ff01, 0, 0, 0),
            4 => cache_leaf(index),
            6 => leaf(1 << 2, 0, 0, 0),
            7 if index == 0 => leaf(2, LEAF7_EBX.of(self), LEAF7_ECX, LEAF7_EDX),
            7 if index == 2 => leaf(0, 0, 0, LEAF72_EDX),
            0xb => topology_leaf(index, vcpu),
            0xd if self.has_xsave() => xsave_leaf(self, index, xcr0),
            0x15 => leaf(1, 1, TSC_HZ, 0),
            0x16 => leaf(TSC_HZ / 1_000_000, TSC_HZ / 1_000_000, 100, 0),
            3..=LEAF_MAX => Leaf::default(),
            0x8000_0000 => leaf(LEAF_EXT_MAX, 0, 0, 0),
            0x8000_0001 => leaf(0, 0, LEAF_EXT1_ECX.of(self), LEAF_EXT1_EDX),
            0x8000_0002..=0x8000_0004 => self.brand_leaf(function - 0x8000_0002),
            0x8000_0006 => leaf(0, 0, 0x0400_8040, 0),
            0x8000_0007 => leaf(0, 0, 0, 1 << 8),
            0x8000_0008 => leaf(PHYSICAL_BITS | (48 << 8), 0, 0, 0),
            _ => Leaf::default(),
        }
    }

    fn leaf_1(self, vcpu: u32, cr4: u64) -> Leaf {
        let osxsave = if cr4 & cr::CR4_OSXSAVE != 0 { LEAF1_ECX_OSXSAVE } else { 0 };
        let ebx = (vcpu << 24) | (1 << 16) | (8 << 8);
        leaf(self.signature(), ebx, LEAF1_ECX.of(self) | osxsave, LEAF1_EDX)
    }

    fn brand_leaf(self, part: u32) -> Leaf {
        let mut name = [0u8; 48];
        let text: &[u8] = match self {
            Model::V2 => b"Doppel x86-64-v2",
            Model::V3 => b"Doppel x86-64-v3",
        };
        name[..text.len()].copy_from_slice(text);
        let word = |i: usize| {
            let at = part as usize * 16 + i * 4;
            u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]])
        };
        leaf(word(0), word(1), word(2), word(3))
    }
}

fn cache_leaf(index: u32) -> Leaf {
    let Some(&(kind, level, ways, sets)) = CACHES.get(index as usize) else {
        return Leaf::default();
    };
    let eax = kind | (level << 5) | (1 << 8);
    leaf(eax, 63 | ((ways - 1) << 22), sets - 1, 0)
}

fn topology_leaf(index: u32, vcpu: u32) -> Leaf {
    match index {
        0 => leaf(0, 1, 1 << 8, vcpu),
        1 => leaf(0, 1, (2 << 8) | 1, vcpu),
        _ => leaf(0, 0, index & 0xff, vcpu),
    }
}

fn xsave_leaf(model: Model, index: u32, xcr0: u64) -> Leaf {
    let size = if xcr0 & cr::XCR0_AVX != 0 { 832 } else { 576 };
    match index {
        0 => leaf(model.xcr0_mask() as u32, size, 832, 0),
        1 => leaf(LEAFD1_EAX, size, 0, 0),
        2 => leaf(256, 576, 0, 0),
        _ => Leaf::default(),
    }
}

impl Cpu<'_> {
    /// `CPUID`.
    pub fn cpuid(&mut self) {
        let regs = &self.vcpu.regs.gpr;
        let (function, index) = (regs[gpr::RAX] as u32, regs[gpr::RCX] as u32);
        let vcpu = &self.vcpu;
        let mut found = vcpu.model.cpuid(function, index, vcpu.index, vcpu.cr4, vcpu.xcr0);
        if function == 1 && !vcpu.lapic.enabled() {
            found.edx &= !LEAF1_EDX_APIC;
        }
        let regs = &mut self.vcpu.regs.gpr;
        regs[gpr::RAX] = u64::from(found.eax);
        regs[gpr::RBX] = u64::from(found.ebx);
        regs[gpr::RCX] = u64::from(found.ecx);
        regs[gpr::RDX] = u64::from(found.edx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GCC's `__builtin_cpu_is` knows these two as "westmere" and "haswell" (cpuinfo.h).
    #[test]
    fn signatures_are_of_processors_that_have_no_more_than_the_models() {
        let model = |of: Model| {
            let eax = of.cpuid(1, 0, 0, 0, 1).eax;
            (eax >> 8 & 15, (eax >> 12 & 0xf0) | (eax >> 4 & 15))
        };
        assert_eq!(model(Model::V2), (6, 0x2c));
        assert_eq!(model(Model::V3), (6, 0x3f));
    }

    #[test]
    fn v2_shows_no_avx() {
        let v2 = Model::V2.cpuid(1, 0, 0, 0, 1);
        let v3 = Model::V3.cpuid(1, 0, 0, 0, 1);
        assert_eq!(v2.ecx & (1 << 28), 0);
        assert_ne!(v3.ecx & (1 << 28), 0);
        assert_ne!(v3.ecx & (1 << 26), 0);
        assert_eq!(Model::V2.cpuid(0xd, 0, 0, 0, 1), Leaf::default());
    }

    #[test]
    fn osxsave_follows_cr4() {
        assert_ne!(Model::V3.cpuid(1, 0, 0, cr::CR4_OSXSAVE, 1).ecx & LEAF1_ECX_OSXSAVE, 0);
        assert_eq!(Model::V3.cpuid(1, 0, 0, 0, 1).ecx & LEAF1_ECX_OSXSAVE, 0);
    }
}
