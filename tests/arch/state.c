/* FPU, SSE and XSAVE state; CPUID's promises; model-specific and control registers. */
#include "kernel64.h"

static u8 area[4096] __attribute__((aligned(64)));
static u8 other[4096] __attribute__((aligned(64)));

static void availability(void)
{
    const void *c;
    in = (struct regs){.rdi = (u64)area};
    write_cr0(read_cr0() | CR0_EM);
    run(c = SNIPPET("fldz"));
    check_trap("em_x87_nm", c, NM, 0, 0);
    run(c = SNIPPET("xorps %%xmm0, %%xmm0"));
    check_trap("em_sse_ud", c, UD, 0, 0);
    run(c = SNIPPET("fxsave (%%rdi)"));
    check_trap("em_fxsave_nm", c, NM, 0, 0);
    write_cr0(read_cr0() & ~(u64)CR0_EM);
    write_cr4(read_cr4() & ~(u64)CR4_OSFXSR);
    run(c = SNIPPET("xorps %%xmm0, %%xmm0"));
    check_trap("osfxsr_off_sse_ud", c, UD, 0, 0);
    run(c = SNIPPET("ldmxcsr (%%rdi)"));
    check_trap("osfxsr_off_ldmxcsr_ud", c, UD, 0, 0);
    run(c = SNIPPET("fxsave (%%rdi)"));
    check_ran("osfxsr_off_fxsave");
    run(c = SNIPPET("sfence\n lfence\n mfence\n prefetcht0 (%%rdi)\n movnti %%eax, (%%rdi)\n pause"));
    check_ran("osfxsr_off_not_sse_state");
    write_cr4(read_cr4() | CR4_OSFXSR);
    run(c = SNIPPET("xgetbv"));
    check_trap("xgetbv_without_osxsave", c, UD, 0, 0);
    run(c = SNIPPET("xsave (%%rdi)"));
    check_trap("xsave_without_osxsave", c, UD, 0, 0);
    run(c = SNIPPET("vxorps %%xmm0, %%xmm0, %%xmm0"));
    check_trap("avx_without_osxsave", c, UD, 0, 0);
    run(c = SNIPPET("andn %%eax, %%eax, %%eax"));
    check("bmi_without_osxsave", trap.vector == (cpuid_reg(7, 0, EBX) & 8 ? -1 : UD), "vector %d", trap.vector);
}

/* x87: tags, environments, exceptions and control words. */
static void x87(void)
{
    const void *c;
    in = (struct regs){.rdi = (u64)area};
    memset(area, 0xee, 512);
    run(SNIPPET("fninit\n fld1\n fldpi\n fxsave (%%rdi)"));
    check_eq("fxsave_fcw", *(u16 *)area, 0x37f);
    check_eq("fxsave_fsw", *(u16 *)(area + 2), 0x3000);
    check_eq("fxsave_tag", area[4], 0xc0);
    check_eq("fxsave_st0_pi", *(u64 *)(area + 32), 0xc90fdaa22168c235);
    check_eq("fxsave_st1_one", *(u64 *)(area + 48), 0x8000000000000000);
    check_eq("fxsave_mxcsr", *(u32 *)(area + 24), 0x1f80);
    check_eq("fxsave_mxcsr_mask", *(u32 *)(area + 28) & 0xffbf, 0xffbf);
    check_eq("fxsave_rest_untouched", area[464] & area[511], 0xee);
    *(u16 *)area = 0x27f;
    run(SNIPPET("fninit\n fxrstor (%%rdi)\n fnstcw 512(%%rdi)\n fnstsw 514(%%rdi)\n fstpt 520(%%rdi)"));
    check_eq("fxrstor_fcw", *(u16 *)(area + 512), 0x27f);
    check_eq("fxrstor_fsw", *(u16 *)(area + 514), 0x3000);
    check_eq("fxrstor_st0", *(u64 *)(area + 520), 0xc90fdaa22168c235);
    *(u32 *)(area + 24) = 0x10000;
    run(c = SNIPPET("fxrstor (%%rdi)"));
    check_trap("fxrstor_mxcsr_reserved", c, GP, 0, 0);
    run(SNIPPET("fninit\n fld1\n fnstenv (%%rdi)\n fnstcw 64(%%rdi)"));
    check_eq("fnstenv_tags", *(u16 *)(area + 8), 0x3fff);
    check_eq("fnstenv_masks_exceptions", *(u16 *)(area + 64), 0x37f);
    run(SNIPPET("fninit\n fld1\n fnsave (%%rdi)\n fnstsw %%ax"));
    check_eq("fnsave_initialises", out.rax & 0xffff, 0);
    check_eq("fnsave_tag", *(u16 *)(area + 8), 0x3fff);
    run(SNIPPET("fninit\n fstp %%st(0)\n fnstsw %%ax"));
    check_eq("x87_underflow", out.rax & 0x241, 0x41);
    run(SNIPPET("fninit\n fld1\n fld1\n fld1\n fld1\n fld1\n fld1\n fld1\n fld1\n fld1\n fnstsw %%ax"));
    check_eq("x87_overflow", out.rax & 0x241, 0x241);
    /* #MF waits for the next waiting instruction and not for FNSTSW. */
    run(c = SNIPPET("fninit\n movw $0x37e, (%%rdi)\n fldcw (%%rdi)\n fldz\n fldz\n fdivp\n fnstsw %%ax\n fnop\n"));
    check("mf_at_fnop", trap.vector == MF && *(u16 *)trap.rip == 0xd0d9, "vector %d", trap.vector);
    check_eq("mf_status", out.rax & 0x8081, 0x8081);
    run(c = SNIPPET("fninit\n movw $0x37e, (%%rdi)\n fldcw (%%rdi)\n fldz\n fldz\n fdivp\n movd %%mm0, %%eax\n"));
    check("mf_at_mmx", trap.vector == MF, "vector %d", trap.vector);
    write_cr0(read_cr0() & ~(u64)CR0_NE);
    write_cr0(read_cr0() | CR0_NE);
    asm volatile("fninit");
    run(SNIPPET("fld1\n movq %%mm0, %%rax\n fnstenv (%%rdi)\n emms\n fnstenv 64(%%rdi)"));
    check_eq("mmx_marks_all_valid", *(u16 *)(area + 8) == 0xffff, 0);
    check_eq("mmx_top_zero", *(u16 *)(area + 4) & 0x3800, 0);
    check_eq("emms_empties", *(u16 *)(area + 64 + 8), 0xffff);
    asm volatile("fninit");
}

static void xsave(void)
{
    const void *c;
    u32 r[4];
    cpuid(1, 0, r);
    if (!(r[2] & 1 << 26))
        return;
    cpuid(0xd, 0, r);
    u64 supported = r[0] | (u64)r[3] << 32;
    u32 size_max = r[2];
    cpuid(0xd, 1, r);
    u32 features = r[0];
    check_eq("osxsave_cpuid_off", cpuid_reg(1, 0, ECX) >> 27 & 1, 0);
    write_cr4(read_cr4() | CR4_OSXSAVE);
    check_eq("osxsave_cpuid_on", cpuid_reg(1, 0, ECX) >> 27 & 1, 1);
    in = (struct regs){};
    run(c = SNIPPET("xgetbv"));
    check("xcr0_reset", trap.vector == -1 && out.rax == 1 && out.rdx == 0, "%lx", out.rax);
    check_eq("xsave_size_x87", cpuid_reg(0xd, 0, EBX), 576);
    run(c = SNIPPET("vxorps %%xmm0, %%xmm0, %%xmm0"));
    check_trap("avx_without_xcr0", c, UD, 0, 0);
#define XSETBV(name, value, vector_)                                                               \
    in = (struct regs){.rax = (u32)(value), .rdx = (u64)(value) >> 32};                            \
    run(c = SNIPPET("xsetbv"));                                                                    \
    if ((vector_) == -1)                                                                           \
        check_ran(name);                                                                           \
    else                                                                                           \
        check_trap(name, c, vector_, 0, 0)
    XSETBV("xsetbv_without_x87", 2, GP);
    XSETBV("xsetbv_avx_without_sse", 5, GP);
    XSETBV("xsetbv_unsupported", 1ull << 62 | 3, GP);
    XSETBV("xsetbv_sse", 3, -1);
    in.rcx = 1;
    run(c = SNIPPET("xsetbv"));
    check_trap("xsetbv_index", c, GP, 0, 0);
    in.rcx = 0;
    run_user(c = USER_SNIPPET("xsetbv"));
    check_trap("xsetbv_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("xgetbv"));
    check("xgetbv_user", trap.vector == -1 && out.rax == 3, "vector %d", trap.vector);
    in.rcx = 9;
    run(c = SNIPPET("xgetbv"));
    check_trap("xgetbv_index", c, GP, 0, 0);
    u64 all = supported & 7;
    XSETBV("xsetbv_all", all, -1);
    check_eq("xsave_size", cpuid_reg(0xd, 0, EBX), all & 4 ? 832 : 576);
    check("xsave_size_max", size_max >= cpuid_reg(0xd, 0, EBX), "%x", size_max);
    if (!(all & 4))
        return;
    cpuid(0xd, 2, r);
    check("avx_component", r[0] == 256 && r[1] == 576, "%x %x", r[0], r[1]);
    write_cr0(read_cr0() | CR0_TS);
    run(c = SNIPPET("vxorps %%xmm0, %%xmm0, %%xmm0"));
    check_trap("avx_ts", c, NM, 0, 0);
    in = (struct regs){.rdi = (u64)area, .rax = 7};
    run(c = SNIPPET("xsave (%%rdi)"));
    check_trap("xsave_ts", c, NM, 0, 0);
    write_cr0(read_cr0() & ~(u64)CR0_TS);
    in.rdi += 8;
    run(c = SNIPPET("xsave (%%rdi)"));
    check_trap("xsave_misaligned", c, GP, 0, 0);
    run(c = SNIPPET("xrstor (%%rdi)"));
    check_trap("xrstor_misaligned", c, GP, 0, 0);

    /* Standard form: only requested components are written; XSTATE_BV keeps bits not requested. */
    static u8 ones[32] __attribute__((aligned(32)));
    memset(ones, 0x11, 32);
    memset(area, 0, sizeof area);
    in = (struct regs){.rdi = (u64)area, .rax = 7, .rsi = (u64)ones};
    run(c = SNIPPET("fninit\n fld1\n vmovaps (%%rsi), %%ymm3\n xsave (%%rdi)"));
    check_eq("xsave_bv", *(u64 *)(area + 512) & 7, 7);
    check_eq("xsave_xcomp_bv_untouched", *(u64 *)(area + 520), 0);
    check_eq("xsave_xmm3", *(u64 *)(area + 160 + 3 * 16), 0x1111111111111111);
    check_eq("xsave_ymm3_high", *(u64 *)(area + 576 + 3 * 16 + 8), 0x1111111111111111);
    memset(area, 0xee, sizeof area);
    *(u64 *)(area + 512) = 5;
    in.rax = 2;
    run(c = SNIPPET("xsave (%%rdi)"));
    check_eq("xsave_partial_bv", *(u64 *)(area + 512), 7);
    check_eq("xsave_partial_x87_untouched", *(u16 *)area, 0xeeee);
    check_eq("xsave_partial_avx_untouched", area[576], 0xee);
    check_eq("xsave_partial_mxcsr", *(u32 *)(area + 24), 0x1f80);
    memset(area, 0, sizeof area);
    memset(other, 0, sizeof other);
    in = (struct regs){.rdi = (u64)area, .rax = 7, .rsi = (u64)ones, .rdx = 0, .r8 = (u64)other};
    run(c = SNIPPET("vmovaps (%%rsi), %%ymm3\n xsave (%%rdi)\n vzeroall\n fninit\n xrstor (%%rdi)\n vmovups %%ymm3, (%%r8)"));
    check("xrstor_ymm", *(u64 *)other == 0x1111111111111111 && *(u64 *)(other + 24) == 0x1111111111111111, "%lx %lx", *(u64 *)other, *(u64 *)(other + 24));
    *(u64 *)(area + 512) = 3; /* AVX in its initial state: the upper halves become zero. */
    run(c = SNIPPET("xrstor (%%rdi)\n vmovups %%ymm3, (%%r8)"));
    check("xrstor_initialises_avx", *(u64 *)other == 0x1111111111111111 && *(u64 *)(other + 24) == 0, "%lx %lx", *(u64 *)other, *(u64 *)(other + 24));
    *(u64 *)(area + 512) = 7;
    in.rax = 4; /* AVX alone: the lower halves stay. */
    run(c = SNIPPET("vzeroall\n xrstor (%%rdi)\n vmovups %%ymm3, (%%r8)"));
    check("xrstor_avx_alone", *(u64 *)other == 0 && *(u64 *)(other + 24) == 0x1111111111111111, "%lx %lx", *(u64 *)other, *(u64 *)(other + 24));
    in.rax = 7;
    *(u64 *)(area + 512) = 7 | 1ull << 40;
    run(c = SNIPPET("xrstor (%%rdi)"));
    check_trap("xrstor_bv_unsupported", c, GP, 0, 0);
    *(u64 *)(area + 512) = 7;
    *(u64 *)(area + 528) = 1;
    run(c = SNIPPET("xrstor (%%rdi)"));
    check_trap("xrstor_header_reserved", c, GP, 0, 0);
    *(u64 *)(area + 528) = 0;
    *(u64 *)(area + 520) = 1;
    run(c = SNIPPET("xrstor (%%rdi)"));
    check_trap("xrstor_standard_xcomp", c, GP, 0, 0);
    *(u64 *)(area + 520) = 0;
    *(u32 *)(area + 24) = 0x80000000;
    run(c = SNIPPET("xrstor (%%rdi)"));
    check_trap("xrstor_mxcsr", c, GP, 0, 0);
    *(u32 *)(area + 24) = 0x1f80;
    run(c = SNIPPET("xrstor (%%rdi)"));
    check_ran("xrstor_again");
    /* MXCSR is restored with SSE or AVX asked for, whatever XSTATE_BV says. */
    *(u32 *)(area + 24) = 0x3f80;
    *(u64 *)(area + 512) = 1;
    in.rax = 4;
    run(c = SNIPPET("xrstor (%%rdi)\n stmxcsr (%%r8)"));
    check_eq("xrstor_mxcsr_with_avx_only", *(u32 *)other, 0x3f80);
    *(u32 *)(area + 24) = 0x1f80;
    run(c = SNIPPET("xrstor (%%rdi)"));

    if (features & 1) {
        memset(area, 0xee, sizeof area);
        *(u64 *)(area + 512) = 7;
        in.rax = 7;
        run(c = SNIPPET("vzeroall\n vmovaps (%%rsi), %%xmm1\n xsaveopt (%%rdi)"));
        check_eq("xsaveopt_avx_initial", *(u64 *)(area + 512) & 6, 2);
        check_eq("xsaveopt_initial_not_written", area[576], 0xee);
    }
    if (features & 2) {
        memset(area, 0, sizeof area);
        in.rax = 7;
        run(c = SNIPPET("vmovaps (%%rsi), %%ymm1\n xsavec (%%rdi)"));
        check_ran("xsavec");
        check_eq("xsavec_xcomp_bv", *(u64 *)(area + 520), 1ull << 63 | 7);
        check_eq("xsavec_ymm1", *(u64 *)(area + 576 + 16), 0x1111111111111111);
        memset(area, 0, sizeof area);
        in.rax = 4;
        run(c = SNIPPET("xsavec (%%rdi)"));
        check("xsavec_avx_only", *(u64 *)(area + 520) == (1ull << 63 | 4) && *(u64 *)(area + 512) == 4 && *(u64 *)(area + 592) == 0x1111111111111111, "%lx %lx", *(u64 *)(area + 520), *(u64 *)(area + 512));
        memset(area, 0xee, sizeof area);
        in.rax = 7;
        run(c = SNIPPET("fninit\n vzeroall\n xsavec (%%rdi)"));
        check_eq("xsavec_all_initial", *(u64 *)(area + 512) & 6, 0);
        check_eq("xsavec_initial_not_written", area[160] & area[576], 0xee);
        in.rax = 7;
        memset(area, 0, sizeof area);
        run(c = SNIPPET("vmovaps (%%rsi), %%ymm3\n xsavec (%%rdi)\n vzeroall\n xrstor (%%rdi)\n vmovups %%ymm3, (%%r8)"));
        check("xrstor_compacted", trap.vector == -1 && *(u64 *)other == 0x1111111111111111 && *(u64 *)(other + 24) == 0x1111111111111111, "vector %d", trap.vector);
        *(u64 *)(area + 512) = 7;
        *(u64 *)(area + 520) = 1ull << 63 | 3;
        run(c = SNIPPET("xrstor (%%rdi)"));
        check_trap("xrstor_compacted_bv_beyond_xcomp", c, GP, 0, 0);
        in.rcx = 1;
        run(c = SNIPPET("xgetbv"));
        if (features & 4)
            check("xgetbv_1", trap.vector == -1 && (out.rax & ~all) == 0, "%lx", out.rax);
        in.rcx = 0;
    }
    if (features & 8) {
        memset(area, 0, sizeof area);
        in.rax = 7;
        check_eq("xss_is_zero", rdmsr(0xda0), 0);
        check_eq("xss_reserved", try_wrmsr(0xda0, 1), GP);
        in = (struct regs){.rdi = (u64)area, .rax = 7, .rsi = (u64)ones, .r8 = (u64)other};
        run(c = SNIPPET("vmovaps (%%rsi), %%ymm3\n xsaves (%%rdi)\n vzeroall\n xrstors (%%rdi)\n vmovups %%ymm3, (%%r8)"));
        check("xsaves_xrstors", trap.vector == -1 && *(u64 *)(other + 24) == 0x1111111111111111, "vector %d", trap.vector);
        check_eq("xsaves_xcomp_bv", *(u64 *)(area + 520), 1ull << 63 | 7);
        run_user(c = USER_SNIPPET("xsaves (%%rdi)"));
        check_trap("xsaves_user", c, GP, 0, 0);
        run_user(c = USER_SNIPPET("xrstors (%%rdi)"));
        check_trap("xrstors_user", c, GP, 0, 0);
        *(u64 *)(area + 520) = 0;
        run(c = SNIPPET("xrstors (%%rdi)"));
        check_trap("xrstors_needs_compacted", c, GP, 0, 0);
        cpuid(0xd, 1, r);
        check_eq("xsaves_size", r[1], 832);
    }
    /* VEX forms zero the upper half, legacy forms keep it. */
    in = (struct regs){.rsi = (u64)ones, .r8 = (u64)other};
    run(c = SNIPPET("vmovaps (%%rsi), %%ymm1\n xorps %%xmm1, %%xmm1\n vmovups %%ymm1, (%%r8)"));
    check_eq("legacy_sse_keeps_upper", *(u64 *)(other + 16), 0x1111111111111111);
    run(c = SNIPPET("vmovaps (%%rsi), %%ymm1\n vxorps %%xmm1, %%xmm1, %%xmm1\n vmovups %%ymm1, (%%r8)"));
    check_eq("vex_zeroes_upper", *(u64 *)(other + 16), 0);
    in.rsi += 1;
    run(c = SNIPPET("vmovaps (%%rsi), %%ymm1"));
    check_trap("vmovaps_misaligned", c, GP, 0, 0);
    run(c = SNIPPET("vaddps (%%rsi), %%ymm1, %%ymm1"));
    check("vaddps_misaligned_allowed", trap.vector != GP, "vector %d", trap.vector);
    run(c = SNIPPET("addps (%%rsi), %%xmm1"));
    check_trap("addps_misaligned", c, GP, 0, 0);
    run(c = SNIPPET(".byte 0xf0, 0xc5, 0xf0, 0x57, 0xc9"));
    check_trap("lock_vex", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x66, 0xc5, 0xf0, 0x57, 0xc9"));
    check_trap("66_vex", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x48, 0xc5, 0xf0, 0x57, 0xc9"));
    check_trap("rex_vex", c, UD, 0, 0);
    write_cr4(read_cr4() & ~(u64)CR4_OSXSAVE);
    run(c = SNIPPET("vxorps %%xmm0, %%xmm0, %%xmm0"));
    check_trap("avx_osxsave_cleared", c, UD, 0, 0);
    write_cr4(read_cr4() | CR4_OSXSAVE);
}

static void features(void)
{
    const void *c;
    u32 r1[4], r7[4], e1[4];
    cpuid(1, 0, r1);
    cpuid(7, 0, r7);
    cpuid(0x80000001, 0, e1);
    in = (struct regs){.rdi = (u64)area, .rax = 1, .rcx = 1};
#define FEATURE(name, reg, bit, text)                                                              \
    run(c = SNIPPET(text));                                                                        \
    check(name, ((reg) >> (bit) & 1) ? trap.vector == -1 : trap.vector == UD, "announced %d, vector %d", (reg) >> (bit) & 1, trap.vector)
    FEATURE("cpuid_sse3", r1[2], 0, "addsubps %%xmm0, %%xmm1");
    FEATURE("cpuid_pclmul", r1[2], 1, "pclmulqdq $0, %%xmm0, %%xmm1");
    FEATURE("cpuid_ssse3", r1[2], 9, "pabsb %%xmm0, %%xmm1");
    FEATURE("cpuid_fma", r1[2], 12, "vfmadd132ps %%xmm0, %%xmm1, %%xmm2");
    FEATURE("cpuid_cx16", r1[2], 13, "cmpxchg16b (%%rdi)");
    FEATURE("cpuid_sse41", r1[2], 19, "pmulld %%xmm0, %%xmm1");
    FEATURE("cpuid_sse42", r1[2], 20, "pcmpgtq %%xmm0, %%xmm1");
    FEATURE("cpuid_movbe", r1[2], 22, "movbe (%%rdi), %%eax");
    FEATURE("cpuid_aes", r1[2], 25, "aesenc %%xmm0, %%xmm1");
    FEATURE("cpuid_avx", r1[2], 28, "vaddps %%ymm0, %%ymm1, %%ymm2");
    FEATURE("cpuid_f16c", r1[2], 29, "vcvtph2ps %%xmm0, %%ymm1");
    FEATURE("cpuid_rdrand", r1[2], 30, "rdrand %%eax");
    FEATURE("cpuid_rdseed", r7[1], 18, "rdseed %%eax");
    FEATURE("cpuid_bmi1", r7[1], 3, "blsr %%eax, %%ecx");
    FEATURE("cpuid_avx2", r7[1], 5, "vpaddd %%ymm0, %%ymm1, %%ymm2");
    FEATURE("cpuid_bmi2", r7[1], 8, "pext %%eax, %%ecx, %%edx");
    FEATURE("cpuid_adx", r7[1], 19, "adcx %%eax, %%ecx");
    FEATURE("cpuid_clflushopt", r7[1], 23, "clflushopt (%%rdi)");
    FEATURE("cpuid_sha", r7[1], 29, "sha256msg1 %%xmm0, %%xmm1");
    FEATURE("cpuid_avx512", r7[1], 16, "vaddps %%zmm0, %%zmm1, %%zmm2");
    FEATURE("cpuid_gfni", r7[2], 8, "gf2p8mulb %%xmm0, %%xmm1");
    FEATURE("cpuid_rdpid", r7[2], 22, "rdpid %%rax");
    FEATURE("cpuid_rdtscp", e1[3], 27, "rdtscp");
    FEATURE("cpuid_movdiri", r7[2], 27, "movdiri %%eax, (%%rdi)");
    FEATURE("cpuid_sse4a", e1[2], 6, "extrq $0, $0, %%xmm0");
    check_eq("cpuid_long_mode", e1[3] >> 29 & 1, 1);
    FEATURE("cpuid_smap_stac", r7[1], 20, "stac\n clac");
    in = (struct regs){.rax = 0, .rcx = 0};
    FEATURE("cpuid_monitor", r1[2], 3, "mov %%rsp, %%rax\n xor %%edx, %%edx\n monitor");
    run(c = SNIPPET("rdpmc"));
    check("rdpmc_runs_or_gp", trap.vector == -1 || trap.vector == GP, "vector %d", trap.vector);
    run_user(c = USER_SNIPPET("cpuid\n rdtsc\n"));
    check_ran("cpuid_rdtsc_user");
    write_cr4(read_cr4() | CR4_TSD);
    run_user(c = USER_SNIPPET("rdtsc"));
    check_trap("rdtsc_tsd_user", c, GP, 0, 0);
    if (e1[3] & 1 << 27) {
        run_user(c = USER_SNIPPET("rdtscp"));
        check_trap("rdtscp_tsd_user", c, GP, 0, 0);
        wrmsr(0xc0000103, 0x1234);
        run(c = SNIPPET("rdtscp"));
        check_eq("rdtscp_aux", out.rcx, 0x1234);
    }
    write_cr4(read_cr4() & ~(u64)CR4_TSD);
    check("cpuid_max_leaf", cpuid_reg(0, 0, EAX) >= 0xd && cpuid_reg(0x80000000, 0, EAX) >= 0x80000008, "%x", cpuid_reg(0, 0, EAX));
    u32 widths = cpuid_reg(0x80000008, 0, EAX);
    check("cpuid_address_widths", (widths & 0xff) >= 36 && (widths & 0xff) <= 52 && (widths >> 8 & 0xff) == 48, "%x", widths);
    in = (struct regs){.rax = 0xffffffff00000000, .rcx = ~0ull};
    run(c = SNIPPET("cpuid"));
    check("cpuid_zero_extends", !(out.rax >> 32 | out.rbx >> 32 | out.rcx >> 32 | out.rdx >> 32), "");
    u64 before = rdtsc();
    int rises = 1;
    for (int i = 0; i < 1000; i++) {
        u64 now = rdtsc();
        rises &= now >= before;
        before = now;
    }
    check("rdtsc_monotonic", rises, "");
    if (r7[1] & 2) {
        wrmsr(0x3b, 0);
        u64 tsc = rdtsc();
        wrmsr(0x3b, 1ull << 40);
        u64 later = rdtsc();
        check("tsc_adjust_moves_tsc", later - tsc >= 1ull << 40 && later - tsc < 1ull << 41, "%lx", later - tsc);
        wrmsr(0x10, rdmsr(0x10) - (1ull << 40));
        check("tsc_write_moves_adjust", rdmsr(0x3b) < 1ull << 39 || rdmsr(0x3b) >> 63, "%lx", rdmsr(0x3b));
        wrmsr(0x3b, 0);
    }
}

static void control(void)
{
    const void *c;
#define REFUSED(name, text, value)                                                                 \
    in = (struct regs){.rax = (value)};                                                            \
    run(c = SNIPPET(text));                                                                        \
    check_trap(name, c, GP, 0, 0)
    u64 cr0 = read_cr0(), cr4 = read_cr4(), efer = rdmsr(0xc0000080);
    REFUSED("cr0_high_bits", "mov %%rax, %%cr0", cr0 | 1ull << 32);
    REFUSED("cr0_pg_without_pe", "mov %%rax, %%cr0", cr0 & ~1ull);
    REFUSED("cr0_nw_without_cd", "mov %%rax, %%cr0", cr0 | 1 << 29);
    REFUSED("cr0_pg_off_in_64_bit", "mov %%rax, %%cr0", cr0 & ~(1ull << 31));
    REFUSED("cr4_pae_off", "mov %%rax, %%cr4", cr4 & ~(u64)CR4_PAE);
    REFUSED("cr4_reserved", "mov %%rax, %%cr4", cr4 | 1ull << 63);
    REFUSED("cr4_reserved_15", "mov %%rax, %%cr4", cr4 | 1 << 15 | 1 << 31);
    REFUSED("cr3_reserved", "mov %%rax, %%cr3", read_cr3() | 1ull << 62);
    REFUSED("xcr0_keep", "mov %%rax, %%cr8", 0x100);
    in.rax = cr0 & ~(u64)0x10;
    run(c = SNIPPET("mov %%rax, %%cr0"));
    check_eq("cr0_et_is_fixed", read_cr0() & 0x10, 0x10);
    in.rax = cr0 | 0x00001000;
    run(c = SNIPPET("mov %%rax, %%cr0"));
    check("cr0_low_reserved_ignored", trap.vector == -1 && read_cr0() == cr0, "vector %d CR0 %lx", trap.vector, read_cr0());
    check_eq("efer_reserved", try_wrmsr(0xc0000080, efer | 1 << 1), GP);
    check_eq("efer_lme_while_paging", try_wrmsr(0xc0000080, efer & ~0x100ull), GP);
    check("efer_lma_write_ignored", try_wrmsr(0xc0000080, efer & ~0x400ull) == -1 && rdmsr(0xc0000080) == efer, "%lx", rdmsr(0xc0000080));
    run_user(c = USER_SNIPPET("mov %%cr0, %%rax"));
    check_trap("mov_cr_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("rdmsr"));
    check_trap("rdmsr_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("clts"));
    check_trap("clts_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("lgdt (%%rsp)"));
    check_trap("lgdt_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("wbinvd"));
    check_trap("wbinvd_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("lmsw %%ax"));
    check_trap("lmsw_user", c, GP, 0, 0);
    in.rax = 0;
    run(c = SNIPPET("lmsw %%ax"));
    check_eq("lmsw_cannot_clear_pe", read_cr0() & 1, 1);
    write_cr0(cr0);
    in = (struct regs){.rdi = (u64)area};
    *(u16 *)area = 0xff;
    *(u64 *)(area + 2) = NON_CANONICAL;
    run(c = SNIPPET("lgdt (%%rdi)"));
    check_trap("lgdt_non_canonical", c, GP, 0, 0);
    check_eq("star_readback", (wrmsr(0xc0000081, 0x0023001000000000), rdmsr(0xc0000081)), 0x0023001000000000);
    check_eq("lstar_non_canonical", try_wrmsr(0xc0000082, NON_CANONICAL), is_amd() ? (u32)trap.vector : GP);
    check_eq("kernel_gs_non_canonical", try_wrmsr(0xc0000102, NON_CANONICAL), GP);
    check_eq("fmask_high_bits", try_wrmsr(0xc0000084, 1ull << 32), is_amd() ? (u32)trap.vector : GP);
    check_eq("unknown_msr_write", try_wrmsr(0x12345, 0), GP);
    check_eq("pat_reset", rdmsr(0x277), 0x0007040600070406);
    check_eq("pat_reserved_type", try_wrmsr(0x277, 0x0007040600070402), GP);
    check_eq("apic_base_reserved", try_wrmsr(0x1b, rdmsr(0x1b) | 1), GP);
    check_eq("tsc_aux_high_bits", try_wrmsr(0xc0000103, 1ull << 32), GP);
    write_cr4(cr4);
}

void kernel_main(void)
{
    availability();
    x87();
    xsave();
    features();
    if (!is_tcg())
        control();
}
