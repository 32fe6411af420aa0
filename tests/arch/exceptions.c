/* Every exception's vector, error code, saved RIP; gates, stacks and delivery. SDM volume 3, chapter 6. */
#include "kernel64.h"

static const u64 absent = 0x5000000000;

static void faults(void)
{
    const void *c;
    in = (struct regs){.rax = 1};
    run(c = SNIPPET("xor %%ecx, %%ecx\n div %%ecx"));
    check_trap("de_div_zero", c, DE, 0, 2);
    in = (struct regs){.rax = 1ull << 63, .rdx = ~0ull, .rcx = ~0ull};
    in.rdx = 0xffffffffffffffff;
    run(c = SNIPPET("idiv %%rcx"));
    check_trap("de_idiv_overflow", c, DE, 0, 0);
    check_eq("de_registers_kept", out.rax, 1ull << 63);
    in = (struct regs){.rax = 0x1234};
    run(c = SNIPPET("mov $1, %%cl\n div %%cl"));
    check_trap("de_div8_overflow", c, DE, 0, 2);
    run(c = SNIPPET("int3\nnop"));
    check_trap("bp_int3_is_trap", c, BP, 0, 1);
    run(c = SNIPPET(".byte 0xcd, 3"));
    check_trap("bp_int_3_long_form", c, BP, 0, 2);
    run(c = SNIPPET("ud2"));
    check_trap("ud_ud2", c, UD, 0, 0);
    run(c = SNIPPET("xor %%eax, %%eax\n .byte 0x0f, 0xff, 0xc0"));
    check_trap("ud_ud0", c, UD, 0, 2);
    run(c = SNIPPET(".byte 0x0f, 0xb9, 0xc0"));
    check_trap("ud_ud1", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x06"));
    check_trap("ud_push_es_64", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0xce"));
    check_trap("ud_into_64", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x27"));
    check_trap("ud_daa_64", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x62, 0x06"));
    check("ud_bound_64", trap.vector == UD || cpuid_reg(7, 0, EBX) >> 16 & 1, "vector %d", trap.vector);
    run(c = SNIPPET(".byte 0x9a, 0, 0, 0, 0, 0, 0"));
    check_trap("ud_far_call_direct_64", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0xf0, 0x90"));
    check_trap("ud_lock_nop", c, UD, 0, 0);
    run(c = SNIPPET("mov %%rsp, %%rdi\n .byte 0xf0, 0x8b, 0x07"));
    check_trap("ud_lock_mov", c, UD, 0, 3);
    run(c = SNIPPET(".byte 0xf0, 0x01, 0xc0"));
    check_trap("ud_lock_add_register", c, UD, 0, 0);
    run(c = SNIPPET("mov %%rsp, %%rdi\n .byte 0xf0, 0x03, 0x07"));
    check_trap("ud_lock_add_load", c, UD, 0, 3);
    run(c = SNIPPET("mov %%rsp, %%rdi\n .byte 0xf0, 0x39, 0x07"));
    check_trap("ud_lock_cmp", c, UD, 0, 3);
    run(c = SNIPPET("mov %%rsp, %%rdi\n .byte 0xf0, 0x0f, 0xa3, 0x07"));
    check_trap("ud_lock_bt", c, UD, 0, 3);
    run(c = SNIPPET(".byte 0x0f, 0x20, 0xc8"));
    check_trap("ud_mov_cr1", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x0f, 0x22, 0xf8"));
    check_trap("ud_mov_cr7", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x8e, 0xcf"));
    check_trap("ud_mov_to_cs", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x0f, 0x01, 0xc0"));
    check_trap("ud_no_vmx", c, UD, 0, 0);
    run(c = SNIPPET(".byte 0x8d, 0xc0"));
    check_trap("ud_lea_register", c, UD, 0, 0);

    in = (struct regs){.rdi = NON_CANONICAL};
    run(c = SNIPPET("mov (%%rdi), %%rax"));
    check_trap("gp_non_canonical_load", c, GP, 0, 0);
    run(c = SNIPPET("mov %%rsp, %%r11\n mov %%rdi, %%rbp\n mov (%%rbp), %%rax"));
    check_trap("ss_non_canonical_rbp", c, SS, 0, 6);
    static u8 ss_stack[4096] __attribute__((aligned(16)));
    set_ist(1, (u64)ss_stack + sizeof ss_stack);
    idt[SS * 2] |= 1ull << 32;
    idt[GP * 2] |= 1ull << 32;
    run(c = SNIPPET("mov %%rdi, %%rsp\n push %%rax"));
    check_trap("ss_non_canonical_push", c, SS, 0, 3);
    check_eq("ss_push_keeps_rsp", trap.rsp, NON_CANONICAL);
    run(c = SNIPPET("mov %%rdi, %%rsp\n pop %%rax"));
    check_trap("ss_non_canonical_pop", c, SS, 0, 3);
    run(c = SNIPPET("mov %%rdi, %%rsp\n ret"));
    check_trap("ss_non_canonical_ret", c, SS, 0, 3);
    reset_gate(SS);
    reset_gate(GP);
    run(c = SNIPPET("jmp *%%rdi"));
    if (is_amd())
        check("gp_jump_non_canonical", trap.vector == GP && trap.error == 0, "vector %d", trap.vector);
    else
        check_trap("gp_jump_non_canonical", c, GP, 0, 0);
    in.rdi = 0x00007fffffffffff;
    run(c = SNIPPET("mov (%%rdi), %%rax"));
    check("gp_or_pf_over_canonical_end", trap.vector == GP || trap.vector == PF, "vector %d", trap.vector);
    in.rcx = 0xc0000101;
    in.rdx = 0x80000000;
    run(c = SNIPPET("wrmsr"));
    check_trap("gp_wrmsr_non_canonical", c, GP, 0, 0);
    run(c = SNIPPET("mov $0xdead, %%ecx\n rdmsr"));
    check_trap("gp_rdmsr_unknown", c, GP, 0, 5);
    in = (struct regs){};
    run(c = SNIPPET("mov $0x58, %%eax\n mov %%eax, %%ds"));
    check_trap("gp_null_type_descriptor", c, GP, 0x58, 5);
    run(c = SNIPPET("mov $0xfff8, %%eax\n mov %%eax, %%ds"));
    check_trap("gp_beyond_gdt", c, GP, 0xfff8, 5);
    run(c = SNIPPET("mov $0x7, %%eax\n mov %%eax, %%ds"));
    check_trap("gp_ldt_null", c, GP, 4, 5);
    run(c = SNIPPET("xor %%eax, %%eax\n mov %%eax, %%ss"));
    check_ran("ss_null_allowed_in_ring0_64");
    run(c = SNIPPET("mov $3, %%eax\n mov %%eax, %%ss"));
    check_trap("gp_ss_null_with_rpl", c, GP, 0, 5);
    gdt[FREE / 8] = 0x00cf13000000ffff;
    run(c = SNIPPET("mov $0x80, %%eax\n mov %%eax, %%ds"));
    check_trap("np_data", c, NP, 0x80, 5);
    run(c = SNIPPET("mov $0x80, %%eax\n mov %%eax, %%ss"));
    check_trap("ss_not_present", c, SS, 0x80, 5);
    run(c = SNIPPET("mov $0x28, %%eax\n mov %%eax, %%ss"));
    check_trap("gp_ss_code", c, GP, 0x28, 5);
    run(c = SNIPPET("mov $0x20, %%eax\n mov %%eax, %%ss"));
    check_trap("gp_ss_dpl", c, GP, 0x20, 5);

    in = (struct regs){.rdi = absent + 0x123};
    run(c = SNIPPET("mov (%%rdi), %%al"));
    check_fault("pf_read_absent", c, 0, 0, absent + 0x123);
    run(c = SNIPPET("mov %%al, (%%rdi)"));
    check_fault("pf_write_absent", c, 2, 0, absent + 0x123);
    run(c = SNIPPET("addb $1, (%%rdi)"));
    check_fault("pf_rmw_absent", c, 2, 0, absent + 0x123);
    run(c = SNIPPET("jmp *%%rdi"));
    check("pf_fetch_absent", trap.vector == PF && trap.error == 0x10 && trap.rip == in.rdi && trap.cr2 == in.rdi,
          "vector %d error %lx RIP %lx CR2 %lx", trap.vector, trap.error, trap.rip, trap.cr2);
    run_user(c = USER_SNIPPET("mov %%al, (%%rdi)"));
    check_fault("pf_user_write_absent", c, 6, 0, absent + 0x123);
    in.rdi = 0x100000;
    run_user(c = USER_SNIPPET("mov (%%rdi), %%al"));
    check_fault("pf_user_read_supervisor", c, 5, 0, 0x100000);
    run_user(c = USER_SNIPPET("mov %%al, (%%rdi)"));
    check_fault("pf_user_write_supervisor", c, 7, 0, 0x100000);
    run_user(c = USER_SNIPPET("jmp *%%rdi"));
    check("pf_user_fetch_supervisor", trap.vector == PF && trap.error == 0x15 && trap.cr2 == 0x100000,
          "vector %d error %lx CR2 %lx", trap.vector, trap.error, trap.cr2);
}

/* #AC needs CR0.AM, EFLAGS.AC and ring 3. */
static void alignment(void)
{
    const void *c;
    static u8 buffer[64] __attribute__((aligned(64)));
    in = (struct regs){.rdi = USER((u64)buffer) + 1};
    write_cr0(read_cr0() | CR0_AM);
    user_rflags = 2 | FL_AC;
    run_user(c = USER_SNIPPET("mov (%%rdi), %%ax"));
    check_trap("ac_user_word", c, AC, 0, 0);
    run_user(c = USER_SNIPPET("mov %%rax, (%%rdi)"));
    check_trap("ac_user_store", c, AC, 0, 0);
    run_user(c = USER_SNIPPET("mov %%al, (%%rdi)"));
    check_ran("ac_byte_never");
    run_user(c = USER_SNIPPET("sub $1, %%rsp\n push %%rax"));
    check_trap("ac_push", c, AC, 0, 4);
    run_user(c = USER_SNIPPET("movups (%%rdi), %%xmm0"));
    check("ac_movups_may", trap.vector == -1 || trap.vector == AC, "vector %d", trap.vector);
    user_rflags = 2;
    run_user(c = USER_SNIPPET("mov (%%rdi), %%ax"));
    check_ran("ac_needs_flag");
    user_rflags = 2 | FL_AC;
    write_cr0(read_cr0() & ~CR0_AM);
    run_user(c = USER_SNIPPET("mov (%%rdi), %%ax"));
    check_ran("ac_needs_cr0_am");
    write_cr0(read_cr0() | CR0_AM);
    run(c = SNIPPET("pushfq\n orl $0x40000, (%%rsp)\n popfq\n mov (%%rdi), %%ax\n"));
    check_ran("ac_not_in_ring0");
    /* A page fault comes before the alignment check. */
    in.rdi = absent + 1;
    run_user(c = USER_SNIPPET("mov (%%rdi), %%ax"));
    check("pf_or_ac_absent_misaligned", trap.vector == PF || trap.vector == AC, "vector %d", trap.vector);
    user_rflags = 2;
    write_cr0(read_cr0() & ~CR0_AM);
}

static void floating(void)
{
    const void *c;
    static u32 mxcsr;
    in = (struct regs){.rdi = (u64)&mxcsr};
    write_cr0(read_cr0() | CR0_TS);
    run(c = SNIPPET("fldz"));
    check_trap("nm_x87_ts", c, NM, 0, 0);
    run(c = SNIPPET("xorps %%xmm0, %%xmm0"));
    check_trap("nm_sse_ts", c, NM, 0, 0);
    run(c = SNIPPET("fwait"));
    check_trap("nm_wait_ts_mp", c, NM, 0, 0);
    write_cr0(read_cr0() & ~(u64)CR0_MP);
    run(c = SNIPPET("fwait"));
    check_ran("nm_wait_without_mp");
    write_cr0((read_cr0() | CR0_MP) & ~(u64)CR0_TS);
    run(c = SNIPPET("fninit\n fldcw 1f(%%rip)\n fld1\n fldz\n fdivrp\n nop\n fwait\n jmp 2f\n1: .word 0x37b\n2:"));
    check("mf_divide_at_wait", trap.vector == MF && trap.error == 0, "vector %d", trap.vector);
    check_eq("mf_rip_is_of_fwait", *(u8 *)trap.rip, 0x9b);
    run(c = SNIPPET("fninit\n fldcw 1f(%%rip)\n fld1\n fldz\n fdivrp\n fnstsw %%ax\n fnclex\n fwait\n jmp 2f\n1: .word 0x37b\n2:"));
    check_ran("mf_fnclex_clears");
    check_eq("mf_status_word", out.rax & 0x80ff, 0x8084);
    run(c = SNIPPET("movl $0x1d80, (%%rdi)\n ldmxcsr (%%rdi)\n mov $1, %%eax\n cvtsi2sd %%eax, %%xmm0\n xorps %%xmm1, %%xmm1\n divsd %%xmm1, %%xmm0"));
    check("xm_divide", trap.vector == XM && trap.error == 0, "vector %d", trap.vector);
    check_eq("xm_rip_is_of_divsd", *(u32 *)trap.rip, 0xc15e0ff2);
    asm volatile("stmxcsr %0" : "=m"(mxcsr));
    check_eq("xm_mxcsr_flag", mxcsr, 0x1d84);
    write_cr4(read_cr4() & ~(u64)CR4_OSXMMEXCPT);
    run(c = SNIPPET("divsd %%xmm1, %%xmm0"));
    check_trap("ud_xm_without_osxmmexcpt", c, UD, 0, 0);
    write_cr4(read_cr4() | CR4_OSXMMEXCPT);
    mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0\n fninit" ::"m"(mxcsr));
    in.rdi = (u64)&mxcsr;
    run(c = SNIPPET("movl $0x80010000, (%%rdi)\n ldmxcsr (%%rdi)"));
    check_trap("gp_mxcsr_reserved", c, GP, 0, 6);
    static u8 area[528] __attribute__((aligned(16)));
    in.rdi = (u64)area + 8;
    run(c = SNIPPET("movaps (%%rdi), %%xmm0"));
    check_trap("gp_movaps_misaligned", c, GP, 0, 0);
    run(c = SNIPPET("fxsave (%%rdi)"));
    check_trap("gp_fxsave_misaligned", c, GP, 0, 0);
}

/* Vector of interrupts to gates that are missing, wrong, or not for the user. */
static void gates(void)
{
    const void *c;
    in = (struct regs){};
    idt[0x90 * 2] = idt[0x90 * 2 + 1] = 0;
    run(c = SNIPPET("int $0x90"));
    check_trap("gp_gate_type", c, GP, 0x90 * 8 + 2, 0);
    set_gate(0x90, 0x100000, 0xe, 0, 0);
    idt[0x90 * 2] &= ~(1ull << 47);
    run(c = SNIPPET("int $0x90"));
    check_trap("np_gate", c, NP, 0x90 * 8 + 2, 0);
    reset_gate(0x90);
    run_user(c = USER_SNIPPET("int $0x90"));
    check_trap("gp_gate_dpl", c, GP, 0x90 * 8 + 2, 0);
    run_user(c = USER_SNIPPET("int3"));
    check_trap("bp_user_int3", c, BP, 0, 1);
    run_user(c = USER_SNIPPET("int1"));
    check("icebp_ignores_dpl", trap.vector == DB && trap.rip == (u64)c + 1, "vector %d", trap.vector);
    set_gate(0x90, 0x100000, 0xe, 0, 0);
    idt[0x90 * 2] = (idt[0x90 * 2] & ~0xffff0000ull) | 0x10 << 16;
    run(c = SNIPPET("int $0x90"));
    check_trap("gp_gate_selector_not_code", c, GP, 0x10, 0);
    idt[0x90 * 2] &= ~0xffff0000ull;
    run(c = SNIPPET("int $0x90"));
    check_trap("gp_gate_selector_null", c, GP, 0, 0);
    idt[0x90 * 2] |= 0x40 << 16;
    run(c = SNIPPET("int $0x90"));
    check_trap("gp_gate_selector_not_long", c, GP, 0x40, 0);
    gdt[FREE / 8] = 0x00af1b000000ffff;
    idt[0x90 * 2] = (idt[0x90 * 2] & ~0xffff0000ull) | FREE << 16;
    run(c = SNIPPET("int $0x90"));
    check_trap("np_gate_selector", c, NP, FREE, 0);
    set_gate(0x90, NON_CANONICAL, 0xe, 0, 0);
    run(c = SNIPPET("int $0x90"));
    check("gp_gate_target_non_canonical", trap.vector == GP && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    struct __attribute__((packed)) {
        u16 limit;
        u64 base;
    } short_idt = {0x90 * 16 - 1, (u64)idt}, whole_idt = {sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" ::"m"(short_idt));
    run(c = SNIPPET("int $0x90"));
    check_trap("gp_beyond_idt", c, GP, 0x90 * 8 + 2, 0);
    asm volatile("lidt %0" ::"m"(whole_idt));
    /* EXT: the error of a fault while a hardware exception is delivered says so; INT n's does not. */
    set_gate(UD, 0x100000, 0xe, 0, 0);
    idt[UD * 2] &= ~(1ull << 47);
    run(c = SNIPPET("ud2"));
    check_trap("np_ext_of_exception", c, NP, UD * 8 + 3, 0);
    set_gate(UD, 0x100000, 0xe, 0, 0);
    idt[UD * 2] = (idt[UD * 2] & ~0xffff0000ull) | 0x10 << 16;
    run(c = SNIPPET("ud2"));
    check_trap("gp_ext_selector", c, GP, 0x11, 0);
    reset_gate(UD);
    reset_gate(0x90);
    set_gate(BP, 0x100000, 0xe, 3, 0);
    idt[BP * 2] &= ~(1ull << 47);
    run(c = SNIPPET("int3"));
    check("np_int3_rip_at_instruction", trap.vector == NP && (trap.error & ~1ull) == BP * 8 + 2 && trap.rip == (u64)c, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(BP);
}

static int keep_flags(struct frame *frame)
{
    u64 flags;
    asm volatile("pushfq\n pop %0" : "=r"(flags));
    frame->rax = flags;
    frame->rbx = (u64)&frame->rax;
    return 0;
}

static void stacks(void)
{
    const void *c;
    static u8 ist_stack[4096] __attribute__((aligned(16)));
    u64 top = (u64)ist_stack + sizeof ist_stack;
    in = (struct regs){};
    handlers[0x90] = keep_flags;
    set_gate(0x90, (u64)idt, 0, 0, 0);
    reset_gate(0x90);
    run(c = SNIPPET("sti\n int $0x90\n cli"));
    check_ran("interrupt_gate");
    check_eq("interrupt_gate_clears_if", out.rax & FL_IF, 0);
    idt[0x90 * 2] |= 1ull << 40;
    run(c = SNIPPET("sti\n int $0x90\n cli"));
    check_eq("trap_gate_keeps_if", out.rax & FL_IF, FL_IF);
    run(c = SNIPPET("pushfq\n orl $0x4000, (%%rsp)\n popfq\n int $0x90\n pushfq\n pop %%rcx\n mov %%ecx, %%edx\n and $~0x4000, %%ecx\n push %%rcx\n popfq"));
    check_eq("gate_clears_nt", out.rax & FL_NT, 0);
    check("iret_with_nt_in_handler_frame", out.rdx & FL_NT, "flags %lx", out.rdx);
    reset_gate(0x90);
    handlers[0x90] = 0;

    run(c = SNIPPET("sub $8, %%rsp\n ud2"));
    check_eq("frame_aligned_16_a", ((u64)trap.frame + sizeof(struct frame)) & 15, 0);
    run(c = SNIPPET("sub $1, %%rsp\n ud2"));
    check_eq("frame_aligned_16_b", ((u64)trap.frame + sizeof(struct frame)) & 15, 0);
    check("frame_below_rsp", trap.rsp - ((u64)trap.frame + sizeof(struct frame)) < 16, "frame %lx RSP %lx", (u64)trap.frame, trap.rsp);
    check_eq("frame_ss_same_privilege", trap.ss, KDATA);
    check_eq("frame_cs_same_privilege", trap.cs, KCODE);

    set_ist(3, top);
    idt[UD * 2] |= 3ull << 32;
    run(c = SNIPPET("ud2"));
    check_eq("ist_from_ring0", (u64)trap.frame + sizeof(struct frame), top);
    check_eq("ist_keeps_ss", trap.ss, KDATA);
    run_user(c = USER_SNIPPET("ud2"));
    check_eq("ist_from_ring3", (u64)trap.frame + sizeof(struct frame), top);
    set_ist(3, top - 8);
    run(c = SNIPPET("ud2"));
    check_eq("ist_aligned_down", (u64)trap.frame + sizeof(struct frame), top - 16);
    reset_gate(UD);
    run_user(c = USER_SNIPPET("ud2"));
    check_eq("rsp0_from_ring3", (u64)trap.frame + sizeof(struct frame), (u64)rsp0_stack_end);
    check_eq("frame_user_ss", trap.ss, UDATA);
    check_eq("frame_user_cs", trap.cs, UCODE);
    check_eq("frame_user_rsp", trap.rsp, user_rsp);
    check_eq("frame_rf_set_by_fault", trap.rflags & FL_RF, FL_RF);
    run_user(c = USER_SNIPPET("int3"));
    check_eq("frame_rf_clear_by_trap", trap.rflags & FL_RF, 0);
    handlers[0x90] = keep_flags;
    reset_gate(0x90);
    idt[0x90 * 2] |= 3ull << 45;
    u16 user_ss;
    run_user(c = USER_SNIPPET("int $0x90\n mov %%ss, %%ecx"));
    user_ss = out.rcx;
    check_eq("iret_restores_user_ss", user_ss, UDATA);
    handlers[0x90] = 0;
    reset_gate(0x90);
}

/* A fault while an exception is delivered: benign, contributory and page faults (table 6-5). */
static void doubles(void)
{
    const void *c;
    static u8 df_stack[4096] __attribute__((aligned(16)));
    set_ist(1, (u64)df_stack + sizeof df_stack);
    in = (struct regs){.rdi = absent};
    idt[DF * 2] |= 1ull << 32;

    idt[PF * 2] &= ~(1ull << 47);
    run(c = SNIPPET("mov (%%rdi), %%al"));
    check("df_pf_then_np", trap.vector == DF && trap.error == 0 && trap.rip == (u64)c, "vector %d error %lx", trap.vector, trap.error);
    check_eq("df_pf_cr2", trap.cr2, absent);
    reset_gate(PF);
    idt[GP * 2] &= ~(1ull << 47);
    run(c = SNIPPET("mov $0xfff8, %%eax\n mov %%eax, %%ds"));
    check("df_gp_then_np", trap.vector == DF && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(GP);
    idt[DE * 2] &= ~(1ull << 47);
    run(c = SNIPPET("xor %%ecx, %%ecx\n div %%ecx"));
    check("df_de_then_np", trap.vector == DF, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(DE);
    idt[UD * 2] &= ~(1ull << 47);
    idt[NP * 2] &= ~(1ull << 47);
    run(c = SNIPPET("ud2"));
    check("df_np_then_np", trap.vector == DF, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(UD);
    reset_gate(NP);

    /* Pushing to an absent stack. */
    set_ist(2, absent + 0x1000);
    idt[UD * 2] |= 2ull << 32;
    idt[PF * 2] |= 1ull << 32;
    run(c = SNIPPET("ud2"));
    check("pf_serial_after_ud", trap.vector == PF && trap.error == 2 && trap.rip == (u64)c, "vector %d error %lx", trap.vector, trap.error);
    check("pf_serial_cr2", trap.cr2 >= absent + 0xfd0 && trap.cr2 < absent + 0x1000, "CR2 %lx", trap.cr2);
    reset_gate(UD);
    idt[DE * 2] |= 2ull << 32;
    run(c = SNIPPET("xor %%ecx, %%ecx\n div %%ecx"));
    check("pf_serial_after_de", trap.vector == PF, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(DE);
    idt[PF * 2] = (idt[PF * 2] & ~(7ull << 32)) | 2ull << 32;
    run(c = SNIPPET("mov (%%rdi), %%al"));
    check("df_pf_then_pf", trap.vector == DF && trap.error == 0 && trap.rip == (u64)c, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(PF);
    idt[PF * 2] |= 1ull << 32;
    /* User to ring 0 with an absent RSP0: the fault's error code has U clear, and the frame is the user's. */
    tss[1] = (u32)absent;
    tss[2] = absent >> 32;
    run_user(c = USER_SNIPPET("ud2"));
    check("pf_rsp0_absent", trap.vector == PF && trap.error == 2 && trap.cs == UCODE && trap.rip == (u64)c, "vector %d error %lx CS %lx", trap.vector, trap.error, trap.cs);
    reset_gate(PF);
    /* Non-canonical stacks are #SS(0), with EXT for exceptions, none for INT n. */
    idt[SS * 2] |= 1ull << 32;
    tss[1] = 0;
    tss[2] = 0x80000000;
    run_user(c = USER_SNIPPET("ud2"));
    check("ss_rsp0_non_canonical", trap.vector == SS && trap.error == 1 && trap.cs == UCODE && trap.rip == (u64)c, "vector %d error %lx CS %lx", trap.vector, trap.error, trap.cs);
    idt[0x90 * 2] |= 3ull << 45;
    run_user(c = USER_SNIPPET("int $0x90"));
    check("ss_rsp0_non_canonical_int", trap.vector == SS && trap.error == 0 && trap.rip == (u64)c, "vector %d error %lx CS %lx", trap.vector, trap.error, trap.cs);
    reset_gate(0x90);
    set_ist(2, NON_CANONICAL);
    idt[UD * 2] |= 2ull << 32;
    run(c = SNIPPET("ud2"));
    check("ss_ist_non_canonical", trap.vector == SS && trap.error == 1 && trap.rip == (u64)c, "vector %d error %lx", trap.vector, trap.error);
    reset_gate(UD);
    reset_gate(SS);
    tss[1] = (u32)(u64)rsp0_stack_end;
    tss[2] = 0;
    /* A TSS that ends before IST2: #TS(TSS selector, EXT). */
    gdt[6] = (gdt[6] & ~0xffffull & ~(2ull << 40)) | 0x29;
    asm volatile("ltr %w0" ::"r"(TSS));
    idt[UD * 2] |= 2ull << 32;
    run(c = SNIPPET("ud2"));
    check_trap("ts_ist_beyond_limit", c, TS, TSS | 1, 0);
    reset_gate(UD);
    reset_gate(0x90);
    idt[0x90 * 2] |= 2ull << 32;
    run(c = SNIPPET("int $0x90"));
    check_trap("ts_ist_beyond_limit_int", c, TS, TSS, 0);
    reset_gate(0x90);
    gdt[6] = (gdt[6] & ~0xffffull & ~(2ull << 40)) | 103;
    asm volatile("ltr %w0" ::"r"(TSS));
    reset_gate(DF);
}

void kernel_main(void)
{
    faults();
    alignment();
    floating();
    gates();
    stacks();
    doubles();
}
