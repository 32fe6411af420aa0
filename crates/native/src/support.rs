//! Whether the host CPU has every instruction that the guest CPU model offers.

use crate::NativeError;

macro_rules! missing {
    ($($feature:tt),* $(,)?) => {{
        let mut missing = Vec::new();
        $( if !std::arch::is_x86_feature_detected!($feature) { missing.push($feature); } )*
        missing
    }};
}

/// Says clearly when the host CPU lacks something that the model offers to guests
/// (x86-64-v3 of the x86-64 psABI, and AES, PCLMULQDQ, SHA, ADX).
pub fn support() -> Result<(), NativeError> {
    let mut missing = missing![
        "fxsr",
        "sse",
        "sse2",
        "sse3",
        "ssse3",
        "sse4.1",
        "sse4.2",
        "popcnt",
        "cmpxchg16b",
        "avx",
        "avx2",
        "bmi1",
        "bmi2",
        "f16c",
        "fma",
        "lzcnt",
        "movbe",
        "aes",
        "pclmulqdq",
        "sha",
        "adx",
    ];
    // CPUID 8000_0001h ECX bit 0 (SDM vol. 2A, CPUID); the stubs themselves need it.
    if std::arch::x86_64::__cpuid(0x8000_0001).ecx & 1 == 0 {
        missing.push("lahf-sahf");
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(NativeError::HostCpu { missing: missing.join(", ") })
}
