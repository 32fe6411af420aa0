//! Which codes the CPU model has, and why some of them have no ground truth in a process.

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic, OpCodeOperandKind};

/// A code in a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// 64 or 32.
    pub bitness: u32,
    /// The code.
    pub code: Code,
}

fn is_in_model(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        INTEL8086
            | INTEL186
            | INTEL286
            | INTEL386
            | INTEL486
            | X64
            | CMOV
            | CX8
            | CMPXCHG16B
            | CPUID
            | CLFSH
            | FPU
            | FPU287
            | FPU387
            | FXSR
            | MMX
            | SSE
            | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | POPCNT
            | LZCNT
            | BMI1
            | BMI2
            | ADX
            | MOVBE
            | F16C
            | FMA
            | AVX
            | AVX2
            | AES
            | PCLMULQDQ
            | SHA
            | MULTIBYTENOP
            | PAUSE
            | SEP
            | SYSCALL
            | TSC
            | RDTSCP
            | MSR
            | XSAVE
            | XSAVEOPT
            | XSAVEC
            | FSGSBASE
            | INVPCID
            | SMAP
            | PREFETCHW
    )
}

/// Every code of the model, in both modes, in the order of iced's table.
pub fn targets() -> Vec<Target> {
    let mut targets = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        let in_model = info.is_instruction()
            && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
            && code.cpuid_features().iter().all(|&feature| is_in_model(feature))
            && !info.fwait();
        for (bitness, exists) in [(64, info.mode64()), (32, info.mode32())] {
            if in_model && exists {
                targets.push(Target { bitness, code });
            }
        }
    }
    targets
}

/// Why `target` cannot be compared with the host, if so.
pub fn excluded(target: Target) -> Option<&'static str> {
    use Mnemonic::*;
    let code = target.code;
    let reason = match code.mnemonic() {
        Int | Syscall | Sysenter | Int1 | Sysret | Sysexit => "enters or leaves the host's kernel",
        Cpuid | Rdtsc | Rdtscp | Rdpmc | Xgetbv => "reads a fact of the host",
        Rcpps | Rcpss | Rsqrtps | Rsqrtss | Vrcpps | Vrcpss | Vrsqrtps | Vrsqrtss => {
            "differs between vendors: ours is native::approx"
        }
        Sgdt | Sidt | Sldt | Smsw | Str | Lar | Lsl | Verr | Verw => {
            "shows the host's descriptor tables"
        }
        Lds | Les | Lfs | Lgs | Lss => "loads from the host's descriptor tables",
        Iret | Iretd | Iretq | Retf => "loads from the host's descriptor tables",
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 | Xrstor | Xrstor64 => {
            "depends on the host's XCR0 and XINUSE"
        }
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => "the bases are the process's own",
        _ => return other_exclusion(target),
    };
    Some(reason)
}

fn other_exclusion(target: Target) -> Option<&'static str> {
    let code = target.code;
    use OpCodeOperandKind as Kind;
    let kinds = code.op_code().op_kinds();
    let is_segment = |kind: &Kind| {
        matches!(
            kind,
            Kind::seg_reg | Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs
        )
    };
    let stores_selector = matches!(code.mnemonic(), Mnemonic::Push)
        || matches!(code, Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg);
    if kinds.iter().any(is_segment) && !stores_selector {
        return Some("loads from the host's descriptor tables");
    }
    let is_system = |kind: &Kind| matches!(kind, Kind::cr_reg | Kind::dr_reg | Kind::tr_reg);
    if kinds.iter().any(is_system) {
        return Some("privileged: tested by whole guests");
    }
    if kinds.iter().any(|kind| matches!(kind, Kind::farbr2_2 | Kind::farbr4_2)) {
        return Some("loads from the host's descriptor tables");
    }
    let info = code.op_code();
    if matches!(code.flow_control(), FlowControl::IndirectCall | FlowControl::IndirectBranch)
        && matches!(
            code,
            Code::Call_m1616
                | Code::Call_m1632
                | Code::Call_m1664
                | Code::Jmp_m1616
                | Code::Jmp_m1632
                | Code::Jmp_m1664
        )
    {
        return Some("loads from the host's descriptor tables");
    }
    if matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    ) {
        return Some("differs between vendors: a no-operation or undefined");
    }
    if target.bitness == 64 && !(info.intel_decoder64() && info.amd_decoder64()) {
        return Some("differs between vendors in 64-bit mode");
    }
    None
}
