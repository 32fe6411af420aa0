/* Segment loads and their checks, LAR/LSL/VERR/VERW, LDT, call gates, far transfers, IRET,
 * compatibility mode, SYSCALL/SYSENTER, SWAPGS, FSGSBASE. SDM volume 3, chapters 3 and 5. */
#include "kernel64.h"

static u64 ldt[16] __attribute__((aligned(16)));
struct far { u64 offset; u16 selector; };
static struct far far_target;

static void descriptor(int selector, u64 access_flags, u32 base, u32 limit)
{
    gdt[selector / 8] = (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | access_flags << 40 | (u64)(limit >> 16 & 15) << 48 | (u64)(base >> 24) << 56;
}
/* Access byte, then flags in bits 12..15 (G D L AVL). */
enum { DATA = 0x93, CODE = 0x9b, CONFORMING = 0x9f, EXECUTE_ONLY = 0x99, READ_ONLY = 0x91, EXPAND_DOWN = 0x97, BIG = 0x4000, LONG = 0x2000, GRANULAR = 0x8000 };

static void call_gate(int selector, u64 target, u16 cs, int dpl)
{
    gdt[selector / 8] = (target & 0xffff) | (u64)cs << 16 | (u64)(0x8c | dpl << 5) << 40 | (target >> 16 & 0xffff) << 48;
    gdt[selector / 8 + 1] = target >> 32;
}

static void loads(void)
{
    const void *c;
    in = (struct regs){.rax = FREE};
#define LOAD_DS "mov %%eax, %%ds"
#define LOAD_SS "mov %%eax, %%ss"
    static const struct { const char *name; const char *seg; u64 access; u16 rpl; int vector; u64 error; } cases[] = {
        {"ds_data", "ds", DATA, 0, -1, 0},
        {"ds_read_only", "ds", READ_ONLY, 0, -1, 0},
        {"ds_readable_code", "ds", CODE, 0, -1, 0},
        {"ds_execute_only", "ds", EXECUTE_ONLY, 0, GP, FREE},
        {"ds_rpl_above_dpl", "ds", DATA, 3, GP, FREE},
        {"ds_conforming_any_rpl", "ds", CONFORMING, 3, -1, 0},
        {"ds_nonconforming_rpl", "ds", CODE, 3, GP, FREE},
        {"ds_system", "ds", 0x89, 0, GP, FREE},
        {"ds_absent", "ds", DATA & ~0x80, 0, NP, FREE},
        {"ds_absent_and_rpl", "ds", DATA & ~0x80, 3, GP, FREE},
        {"ss_data", "ss", DATA, 0, -1, 0},
        {"ss_read_only", "ss", READ_ONLY, 0, GP, FREE},
        {"ss_code", "ss", CODE, 0, GP, FREE},
        {"ss_dpl_3", "ss", DATA | 0x60, 0, GP, FREE},
        {"ss_rpl_3", "ss", DATA | 0x60, 3, GP, FREE},
        {"ss_absent", "ss", DATA & ~0x80, 0, SS, FREE},
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        descriptor(FREE, cases[i].access | BIG | GRANULAR, 0, 0xfffff);
        in.rax = FREE | cases[i].rpl;
        c = cases[i].seg[0] == 'd' ? SNIPPET(LOAD_DS) : SNIPPET(LOAD_SS);
        run(c);
        if (cases[i].vector == -1)
            check_ran(cases[i].name);
        else
            check_trap(cases[i].name, c, cases[i].vector, cases[i].error, 0);
    }
    descriptor(FREE, 0x92 | BIG | GRANULAR, 0, 0xfffff);
    in.rax = FREE;
    run(SNIPPET(LOAD_DS));
    check_eq("accessed_bit_set", gdt[FREE / 8] >> 40 & 1, 1);
    descriptor(FREE, 0x90 | BIG | GRANULAR, 0, 0xfffff);
    run(SNIPPET(LOAD_SS));
    check_eq("accessed_bit_not_set_by_failed_load", gdt[FREE / 8] >> 40 & 1, 0);
    run(SNIPPET("lar %%eax, %%ecx\n lsl %%eax, %%edx\n verr %%ax"));
    check_eq("accessed_bit_not_set_by_lar", gdt[FREE / 8] >> 40 & 1, 0);
    /* FS base from a descriptor, and null selectors. */
    descriptor(FREE, DATA | BIG | GRANULAR, 0x12345678, 0xfffff);
    in.rax = FREE;
    run(SNIPPET("mov %%eax, %%fs"));
    check_eq("fs_base_from_descriptor", rdmsr(0xc0000100), 0x12345678);
    wrmsr(0xc0000100, 0x1234567812345678 & 0x7fffffffffff);
    check_eq("fs_base_msr", rdmsr(0xc0000100), 0x567812345678);
    wrmsr(0xc0000100, 0);
    /* DS base and limit are ignored in 64-bit mode. */
    descriptor(FREE, DATA, 0x12345678, 0);
    in.rdi = (u64)gdt;
    run(SNIPPET(LOAD_DS "\n mov 8(%%rdi), %%rcx"));
    check_eq("ds_base_ignored", out.rcx, gdt[1]);
    in = (struct regs){.rdi = (u64)&far_target};
    far_target = (struct far){0x1111, 0xfff8};
    run(c = SNIPPET(".byte 0x48, 0x0f, 0xb2, 0x0f"));
    check("lss_beyond_gdt", trap.vector == GP, "vector %d", trap.vector);
    check_eq("lss_keeps_register", out.rcx, 0);
    run_user(c = USER_SNIPPET("mov $0x10, %%eax\n mov %%eax, %%ds"));
    check_trap("ds_user_dpl_0", c, GP, 0x10, 5);
    run_user(c = USER_SNIPPET("xor %%eax, %%eax\n mov %%eax, %%ss"));
    check_trap("ss_user_null", c, GP, 0, 2);
    run_user(c = USER_SNIPPET("mov $0x20, %%eax\n mov %%eax, %%ss"));
    check_trap("ss_user_rpl", c, GP, 0x20, 5);
    run_user(c = USER_SNIPPET("xor %%eax, %%eax\n mov %%eax, %%ds\n mov %%eax, %%es\n mov (%%rsp), %%rax"));
    check_ran("ds_null_usable_in_64_bit");
}

static void inspections(void)
{
    static const struct { u64 access; int user, lar, lsl, verr, verw; } cases[] = {
        {DATA, 0, 1, 1, 1, 1}, {READ_ONLY, 0, 1, 1, 1, 0}, {CODE, 0, 1, 1, 1, 0}, {EXECUTE_ONLY, 0, 1, 1, 0, 0},
        {DATA, 1, 0, 0, 0, 0}, {CONFORMING, 1, 1, 1, 1, 0}, {DATA | 0x60, 1, 1, 1, 1, 1},
        {0x89, 0, 1, 1, 0, 0} /* TSS */, {0x8b, 0, 1, 1, 0, 0}, {0x82, 0, 1, 1, 0, 0} /* LDT */,
        {0x8c, 0, 1, 0, 0, 0} /* call gate */, {0x8e, 0, 0, 0, 0, 0}, {0x8f, 0, 0, 0, 0, 0}, {0x81, 0, 0, 0, 0, 0},
        {0x85, 0, 0, 0, 0, 0}, {0x80, 0, 0, 0, 0, 0}, {DATA & ~0x80, 0, 1, 1, 1, 1},
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        descriptor(FREE, cases[i].access, 0, 0x12345);
        gdt[FREE / 8 + 1] = 0;
        in = (struct regs){.rax = FREE, .rcx = ~0ull, .rdx = ~0ull};
#define INSPECT "lar %%eax, %%ecx\n sete %%r8b\n lsl %%eax, %%edx\n sete %%r9b\n verr %%ax\n sete %%r10b\n verw %%ax\n sete %%r11b"
        if (cases[i].user)
            run_user(USER_SNIPPET(INSPECT));
        else
            run(SNIPPET(INSPECT));
        u32 got = (out.r8 & 1) << 3 | (out.r9 & 1) << 2 | (out.r10 & 1) << 1 | (out.r11 & 1);
        u32 want = cases[i].lar << 3 | cases[i].lsl << 2 | cases[i].verr << 1 | cases[i].verw;
        check("lar_lsl_verr_verw", got == want, "access %lx: is %x, should be %x", cases[i].access, got, want);
        u64 rights = (gdt[FREE / 8] >> 32) & 0xf0ff00;
        if (cases[i].lar)
            check("lar_value", (out.rcx & 0xf0ff00) == rights && out.rcx >> 32 == 0, "access %lx: %lx, should be %lx", cases[i].access, out.rcx, rights);
        else
            check_eq("lar_keeps_register", out.rcx, ~0ull);
        check_eq("lsl_value", out.rdx, cases[i].lsl ? 0x12345 : ~0ull);
    }
    in = (struct regs){.rax = 0, .rcx = 5};
    run(SNIPPET("lar %%eax, %%ecx\n sete %%r8b"));
    check_eq("lar_null", out.r8 & 1, 0);
    descriptor(FREE, DATA | GRANULAR, 0, 0x12345);
    in.rax = FREE;
    run(SNIPPET("lsl %%eax, %%ecx"));
    check_eq("lsl_granular", out.rcx, 0x12345fff);
    run(SNIPPET("str %%eax\n sldt %%ecx\n smsw %%edx"));
    check_eq("str", out.rax, TSS);
    check_eq("sldt", out.rcx, 0);
    check_eq("smsw", (u32)out.rdx, (u32)read_cr0());
}

static void local_table(void)
{
    const void *c;
    u64 base = (u64)ldt;
    gdt[FREE / 8] = 127 | (base & 0xffffff) << 16 | 0x82ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[FREE / 8 + 1] = base >> 32;
    in = (struct regs){.rax = FREE};
    run(c = SNIPPET("lldt %%ax"));
    check_ran("lldt");
    ldt[1] = 0x00cf93000000ffff;
    in.rax = 8 | 4;
    run(c = SNIPPET(LOAD_DS));
    check_ran("ldt_selector");
    in.rax = 16 * 8 + 4;
    run(c = SNIPPET(LOAD_DS));
    check_trap("ldt_limit", c, GP, 16 * 8 + 4, 0);
    in.rax = 4;
    run(c = SNIPPET(LOAD_DS));
    check_trap("ldt_entry_0_is_a_descriptor", c, GP, 4, 0);
    in.rax = 8 | 4;
    run(c = SNIPPET("lldt %%ax"));
    check_trap("lldt_of_ldt_selector", c, GP, 12, 0);
    in.rax = KDATA;
    run(c = SNIPPET("lldt %%ax"));
    check_trap("lldt_of_data", c, GP, KDATA, 0);
    gdt[FREE / 8] &= ~(1ull << 47);
    in.rax = FREE;
    run(c = SNIPPET("lldt %%ax"));
    check_trap("lldt_absent", c, NP, FREE, 0);
    in.rax = 0;
    run(c = SNIPPET("lldt %%ax"));
    check_ran("lldt_null");
    in.rax = 12;
    run(c = SNIPPET(LOAD_DS));
    check_trap("ldt_null", c, GP, 12, 0);
    run_user(c = USER_SNIPPET("lldt %%ax"));
    check_trap("lldt_user", c, GP, 0, 0);
    in.rax = TSS;
    run(c = SNIPPET("ltr %%ax"));
    check_trap("ltr_busy", c, GP, TSS, 0);
    in.rax = 0;
    run(c = SNIPPET("ltr %%ax"));
    check_trap("ltr_null", c, GP, 0, 0);
    gdt[FREE / 8] = gdt[6] & ~(2ull << 40);
    gdt[FREE / 8 + 1] = gdt[7];
    gdt[FREE / 8] &= ~(1ull << 47);
    in.rax = FREE;
    run(c = SNIPPET("ltr %%ax"));
    check_trap("ltr_absent", c, NP, FREE, 0);
    gdt[FREE / 8] |= 1ull << 47;
    run(c = SNIPPET("ltr %%ax\n mov $0x30, %%eax"));
    check_ran("ltr");
    check_eq("ltr_marks_busy", gdt[FREE / 8] >> 41 & 1, 1);
    gdt[6] &= ~(2ull << 40);
    in.rax = TSS;
    run(c = SNIPPET("ltr %%ax"));
    run_user(c = USER_SNIPPET("sgdt -64(%%rsp)\n sidt -64(%%rsp)\n str %%eax\n sldt %%ecx\n smsw %%edx"));
    check_ran("sgdt_user_without_umip");
    if (cpuid_reg(7, 0, ECX) & 4) {
        write_cr4(read_cr4() | CR4_UMIP);
        run_user(c = USER_SNIPPET("sgdt -64(%%rsp)"));
        check_trap("umip_sgdt", c, GP, 0, 0);
        run_user(c = USER_SNIPPET("smsw %%eax"));
        check_trap("umip_smsw", c, GP, 0, 0);
        write_cr4(read_cr4() & ~(u64)CR4_UMIP);
    }
}

static void far_transfers(void)
{
    const void *c;
    in = (struct regs){.rdi = (u64)&far_target};
    static u8 stub[] = {0x48, 0xcb};        /* lretq */
    far_target = (struct far){(u64)stub, KCODE};
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_ran("far_call_and_return");
    far_target.selector = 0;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_null", c, GP, 0, 0);
    far_target.selector = KDATA;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_data", c, GP, KDATA, 0);
    far_target.selector = UCODE;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_dpl", c, GP, UCODE & ~3, 0);
    far_target.selector = KCODE | 3;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_rpl", c, GP, KCODE, 0);
    descriptor(FREE, (CODE & ~0x80) | LONG, 0, 0);
    far_target.selector = FREE;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_absent", c, NP, FREE, 0);
    descriptor(FREE, CODE | LONG | BIG, 0, 0);
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_l_and_d", c, GP, FREE, 0);
    far_target = (struct far){NON_CANONICAL, KCODE};
    run(c = SNIPPET("rex.W ljmp *(%%rdi)"));
    check("far_jump_non_canonical", trap.vector == GP && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    /* Conforming code runs at the caller's privilege. */
    descriptor(FREE, CONFORMING | LONG, 0, 0);
    static u8 read_cs[] = {0x8c, 0xc9, 0x48, 0xcb}; /* mov %cs, %ecx; lretq */
    far_target = (struct far){USER((u64)read_cs), FREE};
    in.rdi = USER((u64)&far_target);
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_ran("conforming_call_from_user");
    check_eq("conforming_keeps_cpl", (u16)out.rcx, FREE | 3);
    far_target.selector = KCODE;
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("user_far_call_kernel", c, GP, KCODE, 0);
    /* Call gates, 64-bit. */
    call_gate(FREE, (u64)read_cs, KCODE, 3);
    far_target = (struct far){0, FREE};
    in.rdi = (u64)&far_target;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_ran("call_gate_same_privilege");
    check_eq("call_gate_cs", (u16)out.rcx, KCODE);
    static u8 gate_code[] = {0x8c, 0xc9, 0x8c, 0xd2, 0x48, 0x89, 0xe6, 0x4c, 0x8b, 0x44, 0x24, 0x10, 0x48, 0xcb};
    /* mov %cs,%ecx; mov %ss,%edx; mov %rsp,%rsi; mov 16(%rsp),%r8; lretq */
    call_gate(FREE, (u64)gate_code, KCODE, 3);
    in.rdi = USER((u64)&far_target);
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)\n mov %%cs, %%r9d\n mov %%ss, %%r10d\n mov %%rsp, %%r11"));
    check_ran("call_gate_from_user");
    check_eq("call_gate_user_cs", (u16)out.rcx, KCODE);
    check_eq("call_gate_user_ss_null", (u16)out.rdx, 0);
    check_eq("call_gate_user_rsp", out.rsi, (u64)rsp0_stack_end - 32);
    check_eq("call_gate_pushed_rsp", out.r8, user_rsp);
    check_eq("call_gate_return_cs", (u16)out.r9, UCODE);
    check_eq("call_gate_return_ss", (u16)out.r10, UDATA);
    check_eq("call_gate_return_rsp", out.r11, user_rsp);
    call_gate(FREE, (u64)gate_code, KCODE, 0);
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("call_gate_dpl", c, GP, FREE, 0);
    call_gate(FREE, (u64)gate_code, KCODE, 3);
    gdt[FREE / 8] &= ~(1ull << 47);
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("call_gate_absent", c, NP, FREE, 0);
    call_gate(FREE, (u64)gate_code, KCODE, 3);
    gdt[FREE / 8 + 1] |= 1ull << 40;
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("call_gate_upper_type", c, GP, FREE, 0);
    call_gate(FREE, (u64)gate_code, KCODE32, 3);
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("call_gate_to_32_bit", c, GP, KCODE32, 0);
    call_gate(FREE, (u64)gate_code, 0, 3);
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("call_gate_null_target", c, GP, 0, 0);
    call_gate(FREE, (u64)gate_code, KCODE, 3);
    run_user(c = USER_SNIPPET("rex.W ljmp *(%%rdi)"));
    check_trap("jump_gate_more_privilege", c, GP, KCODE, 0);
    static u8 fault_stack[4096] __attribute__((aligned(16)));
    set_ist(1, (u64)fault_stack + sizeof fault_stack);
    idt[SS * 2] |= 1ull << 32;
    tss[2] = 0x80000000;
    run_user(c = USER_SNIPPET("rex.W lcall *(%%rdi)"));
    tss[2] = 0;
    reset_gate(SS);
    check("call_gate_rsp0_non_canonical", trap.vector == SS && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    far_target = (struct far){0, TSS};
    in.rdi = (u64)&far_target;
    run(c = SNIPPET("rex.W lcall *(%%rdi)"));
    check_trap("far_call_tss", c, GP, TSS, 0);
    /* RETF with errors. */
    run(c = SNIPPET("push $0\n push $0\n lretq"));
    check_trap("lret_null", c, GP, 0, 4);
    run(c = SNIPPET("push $0x10\n push $0\n lretq"));
    check_trap("lret_data", c, GP, 0x10, 4);
    run(c = SNIPPET("push $0\n push $0x28\n push $0\n lretq"));
    check("lret_dpl_mismatch", trap.vector == GP && trap.error == 0x28, "vector %d error %lx", trap.vector, trap.error);
}

static void returns(void)
{
    const void *c;
#define IRET(ss, rsp, flags, cs, rip) "pushq $" #ss "\n " rsp "\n pushq $" #flags "\n pushq $" #cs "\n " rip "\n iretq\n"
#define NEXT "lea 1f(%%rip), %%rax\n push %%rax"
#define SAME "lea 8(%%rsp), %%rax\n push %%rax"
    in = (struct regs){};
    run(c = SNIPPET(IRET(0x10, SAME, 2, 8, NEXT) "1: nop"));
    check_ran("iret_same");
    run(c = SNIPPET(IRET(0, SAME, 2, 8, NEXT) "1: nop\n mov %%ss, %%ecx"));
    check_ran("iret_null_ss_ring0");
    run(c = SNIPPET(IRET(0x10, SAME, 2, 0, NEXT) "1: nop"));
    check("iret_null_cs", trap.vector == GP && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    run(c = SNIPPET(IRET(0x10, SAME, 2, 0x10, NEXT) "1: nop"));
    check("iret_data_cs", trap.vector == GP && trap.error == 0x10, "vector %d error %lx", trap.vector, trap.error);
    run(c = SNIPPET(IRET(0x20, SAME, 2, 8, NEXT) "1: nop"));
    check("iret_ss_rpl", trap.vector == GP && trap.error == 0x20, "vector %d error %lx", trap.vector, trap.error);
    run(c = SNIPPET(IRET(0x10, SAME, 2, 0x2b, NEXT) "1: nop"));
    check("iret_user_cs_kernel_ss", trap.vector == GP && trap.error == 0x10, "vector %d error %lx", trap.vector, trap.error);
    run(c = SNIPPET(IRET(0, SAME, 2, 0x2b, NEXT) "1: nop"));
    check("iret_user_cs_null_ss", trap.vector == GP && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    run(c = SNIPPET(IRET(0x10, SAME, 2, 8, "mov $1, %%eax\n ror $1, %%rax\n push %%rax")));
    check("iret_non_canonical", trap.vector == GP && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    run(c = SNIPPET(IRET(0x10, SAME, 0x4002, 8, NEXT) "1: nop\n pushfq\n pop %%rcx\n push $2\n popfq"));
    check("iret_may_set_nt", trap.vector == -1 && out.rcx & FL_NT, "vector %d flags %lx", trap.vector, out.rcx);
    run(c = SNIPPET("pushq $0x4002\n popfq\n" IRET(0x10, SAME, 2, 8, NEXT) "1: nop"));
    check("iret_with_nt_is_gp", trap.vector == GP && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    /* Flags a user cannot change: IOPL and IF. */
    user_rflags = 2;
    run_user(c = USER_SNIPPET("pushq $0x3202\n popfq\n pushfq\n pop %%rcx"));
    check_eq("popf_user_keeps_if_iopl", out.rcx & 0x3200, 0);
    run_user(c = USER_SNIPPET("cli"));
    check_trap("cli_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("hlt"));
    check_trap("hlt_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("in $0x80, %%al"));
    check_trap("in_user", c, GP, 0, 0);
    user_rflags = 0x3002;
    run_user(c = USER_SNIPPET("cli\n in $0x80, %%al\n sti\n cli"));
    check_ran("iopl_3");
    user_rflags = 2;
    /* I/O bitmap. */
    memset((u8 *)tss + 104, 0xff, 2049);
    tss[25] = 104 << 16;
    gdt[6] = (gdt[6] & ~0xffffull & ~(2ull << 40)) | (104 + 2048);
    asm volatile("ltr %w0" ::"r"(TSS));
    ((u8 *)tss)[104 + 0x80 / 8] = 0xfe;
    run_user(c = USER_SNIPPET("in $0x80, %%al"));
    check_ran("io_bitmap_allows");
    run_user(c = USER_SNIPPET("in $0x80, %%ax"));
    check_trap("io_bitmap_word", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("mov $0xffff, %%edx\n in (%%dx), %%al"));
    check_trap("io_bitmap_last", c, GP, 0, 5);
    gdt[6] = (gdt[6] & ~0xffffull & ~(2ull << 40)) | 103;
    asm volatile("ltr %w0" ::"r"(TSS));
    run_user(c = USER_SNIPPET("in $0x80, %%al"));
    check_trap("io_bitmap_beyond_limit", c, GP, 0, 0);
}

static void compatibility(void)
{
    const void *c;
    user_code = UCODE32;
    in = (struct regs){.rax = 0x7fffffff, .rdi = USER((u64)ldt), .rsi = 0x1122334455667788};
    run_user(c = USER_SNIPPET(".code32\n inc %%eax\n dec %%ecx\n push %%eax\n pop %%edx\n mov %%cs, %%ebx\n pushf\n pop %%ebp\n .code64"));
    check_ran("compat_runs");
    check_eq("compat_inc", out.rax, 0x80000000);
    check_eq("compat_dec_zero_extends_or_keeps", (u32)out.rcx, 0xffffffff);
    check_eq("compat_push_pop", (u32)out.rdx, 0x80000000);
    check_eq("compat_cs", (u16)out.rbx, UCODE32);
    run_user(c = USER_SNIPPET(".code32\n daa\n aaa\n pusha\n popa\n push %%es\n pop %%es\n .code64"));
    check_ran("compat_old_instructions");
    in.rax = 0x7fffffff;
    run_user(c = USER_SNIPPET(".code32\n inc %%eax\n into\n .code64"));
    check_trap("of_into", c, OF, 0, 2);
    run_user(c = USER_SNIPPET(".code32\n xor %%eax, %%eax\n into\n .code64"));
    check_ran("into_without_overflow");
    u32 *bounds = (u32 *)ldt;
    bounds[0] = 5;
    bounds[1] = 10;
    run_user(c = USER_SNIPPET(".code32\n mov $11, %%eax\n bound %%eax, (%%edi)\n .code64"));
    check_trap("br_above", c, BR, 0, 5);
    run_user(c = USER_SNIPPET(".code32\n mov $4, %%eax\n bound %%eax, (%%edi)\n .code64"));
    check_trap("br_below", c, BR, 0, 5);
    run_user(c = USER_SNIPPET(".code32\n mov $10, %%eax\n bound %%eax, (%%edi)\n .code64"));
    check_ran("bound_inside");
    run_user(c = USER_SNIPPET(".code32\n .byte 0x62, 0xc0\n .code64"));
    check("bound_register_ud_or_evex", trap.vector == UD, "vector %d", trap.vector);
    run_user(c = USER_SNIPPET(".code32\n mov $0x2b, %%eax\n arpl %%ax, %%cx\n sete %%bl\n .code64"));
    check_eq("arpl_raises", out.rcx & 3, 3);
    check_eq("arpl_zf", out.rbx & 1, 1);
    /* Segment bases and limits count. */
    descriptor(FREE, DATA | 0x60 | BIG, USER((u64)ldt), 15);
    ldt[0] = 0x8877665544332211;
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov 4, %%ecx\n .code64"));
    check_ran("compat_segment_base");
    check_eq("compat_segment_base_value", (u32)out.rcx, 0x88776655);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov 13, %%ecx\n .code64"));
    check_trap("compat_limit", c, GP, 0, 7);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov 12, %%ecx\n .code64"));
    check_ran("compat_limit_last");
    descriptor(FREE, READ_ONLY | 0x60 | BIG, USER((u64)ldt), 15);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov %%ecx, 4\n .code64"));
    check_trap("compat_read_only", c, GP, 0, 7);
    run_user(c = USER_SNIPPET(".code32\n xor %%eax, %%eax\n mov %%eax, %%ds\n mov (%%edi), %%ecx\n .code64"));
    check_trap("compat_null_ds", c, GP, 0, 4);
    run_user(c = USER_SNIPPET(".code32\n mov %%ecx, %%cs:(%%edi)\n .code64"));
    check_trap("compat_write_code", c, GP, 0, 0);
    descriptor(FREE, EXPAND_DOWN | 0x60 | BIG, USER((u64)ldt), 7);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov 8, %%ecx\n .code64"));
    check_ran("expand_down_above");
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov 7, %%ecx\n .code64"));
    check_trap("expand_down_at_limit", c, GP, 0, 7);
    descriptor(FREE, EXPAND_DOWN | 0x60, 0, 0x10);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ds\n mov 0x10000, %%ecx\n .code64"));
    check_trap("expand_down_small_top", c, GP, 0, 7);
    /* SS: stack faults. */
    descriptor(FREE, DATA | 0x60 | BIG, USER((u64)ldt), 15);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%ss\n mov $4, %%esp\n push %%eax\n push %%eax\n .code64"));
    check("compat_stack_limit", trap.vector == SS && trap.error == 0 && (u32)trap.rsp == 0, "vector %d error %lx RSP %lx", trap.vector, trap.error, trap.rsp);
    run_user(c = USER_SNIPPET(".code32\n mov %%ebp, %%ecx\n mov $0x83, %%eax\n mov %%eax, %%ss\n mov $14, %%ebp\n mov (%%ebp), %%eax\n .code64"));
    check("compat_ss_ebp", trap.vector == SS && trap.error == 0, "vector %d", trap.vector);
    run_user(c = USER_SNIPPET(".code32\n mov $0x83, %%eax\n mov %%eax, %%es\n mov %%es:14, %%eax\n .code64"));
    check_trap("compat_es_limit", c, GP, 0, 7);
    /* 16-bit address wrap, and code limit. */
    user_code = FREE | 3;
    static u8 page[8192] __attribute__((aligned(4096)));
    descriptor(FREE, 0xfb | BIG, USER((u64)page), 0xf);
    memset(page, 0x90, sizeof page);
    run_user((void *)0);
    check("code_limit", trap.vector == GP && trap.error == 0 && trap.rip == 0x10, "vector %d error %lx RIP %lx", trap.vector, trap.error, trap.rip);
    page[13] = 0xb8; /* a mov $imm32 that goes over the limit */
    run_user((void *)0);
    check("code_limit_inside_instruction", trap.vector == GP && trap.rip == 13, "vector %d RIP %lx", trap.vector, trap.rip);
    page[13] = 0x90;
    page[14] = 0xeb;
    page[15] = 0x20;
    run_user((void *)0);
    check("code_limit_jump", trap.vector == GP && trap.error == 0 && trap.rip == 14, "vector %d error %lx RIP %lx", trap.vector, trap.error, trap.rip);
    user_code = UCODE;
    asm volatile("mov %0, %%fs\n mov %0, %%gs" ::"r"(KDATA));
}

asm(".text\n.globl entry_stub\nentry_stub: mov %rsp, %r8\n mov %cs, %r9d\n mov %ss, %r10d\n pushfq\n pop %r12\n sysretq\n"
    ".globl entry_stub32\nentry_stub32: mov %rsp, %r8\n sysretl\n"
    ".globl enter_stub\nenter_stub: mov %rsp, %r8\n mov %cs, %r9d\n mov %ss, %r10d\n pushfq\n pop %r12\n mov %r13, %rdx\n mov %r14, %rcx\n sysexitq\n"
    ".globl enter_stub32\nenter_stub32: mov %rsp, %r8\n mov %esi, %edx\n mov %ebp, %ecx\n sysexitl\n");

static void system_calls(void)
{
    const void *c;
    extern char entry_stub[], entry_stub32[], enter_stub[], enter_stub32[];
    wrmsr(0xc0000081, (u64)KCODE << 32 | 0x1bull << 48);
    wrmsr(0xc0000082, (u64)entry_stub);
    wrmsr(0xc0000083, (u64)entry_stub32);
    wrmsr(0xc0000084, FL_CF | FL_IF | FL_DF);
    in = (struct regs){};
    user_rflags = 2 | FL_DF | FL_CF | FL_ZF;
    run_user(c = USER_SNIPPET("nop\n syscall\n mov %%cs, %%r13d\n mov %%ss, %%r14d\n mov %%rsp, %%r15"));
    check_ran("syscall_sysret");
    check_eq("syscall_rcx", out.rcx, (u64)c + 3);
    check_eq("syscall_r11", out.r11, user_rflags);
    check_eq("syscall_keeps_rsp", out.r8, user_rsp);
    check_eq("syscall_cs", (u16)out.r9, KCODE);
    check_eq("syscall_ss", (u16)out.r10, KDATA);
    check_eq("syscall_fmask", out.r12, 2 | FL_ZF);
    check_eq("sysret_cs", (u16)out.r13, UCODE);
    check_eq("sysret_ss", (u16)out.r14, UDATA);
    check_eq("sysret_rflags", out.rflags & (FL_DF | FL_CF), FL_DF | FL_CF);
    user_rflags = 2;
    in.rcx = NON_CANONICAL;
    run(c = SNIPPET("sysretq"));
    if (!is_amd())
        check_trap("sysret_non_canonical", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("sysretq"));
    check_trap("sysret_user", c, GP, 0, 0);
    u64 efer = rdmsr(0xc0000080);
    wrmsr(0xc0000080, efer & ~1ull);
    run_user(c = USER_SNIPPET("syscall"));
    check_trap("syscall_without_sce", c, UD, 0, 0);
    run(c = SNIPPET("sysretq"));
    check_trap("sysret_without_sce", c, UD, 0, 0);
    wrmsr(0xc0000080, efer);
    user_code = UCODE32;
    run_user(c = USER_SNIPPET("syscall"));
    if (is_amd())
        check_ran("syscall_compat_amd");
    else
        check_trap("syscall_compat", c, UD, 0, 0);
    user_code = UCODE;
    if (!is_amd()) {
        wrmsr(0x174, KCODE);
        wrmsr(0x175, (u64)rsp0_stack_end - 64);
        wrmsr(0x176, (u64)enter_stub);
        in = (struct regs){.r14 = user_rsp - 256};
        run_user(c = USER_SNIPPET("lea 1f(%%rip), %%r13\n sysenter\n ud2\n 1: mov %%cs, %%r13d\n mov %%ss, %%r14d\n mov %%rsp, %%r15"));
        check_ran("sysenter_sysexit");
        check_eq("sysenter_rsp", out.r8, (u64)rsp0_stack_end - 64);
        check_eq("sysenter_cs", (u16)out.r9, KCODE);
        check_eq("sysenter_ss", (u16)out.r10, KDATA);
        check_eq("sysexit_cs", (u16)out.r13, KCODE + 32 + 3);
        check_eq("sysexit_ss", (u16)out.r14, KCODE + 40 + 3);
        check_eq("sysexit_rsp", out.r15, user_rsp - 256);
        wrmsr(0x176, (u64)enter_stub32);
        in = (struct regs){};
        user_code = UCODE32;
        run_user(c = USER_SNIPPET(".code32\n call 2f\n 2: pop %%esi\n add $(1f - 2b), %%esi\n mov %%esp, %%ebp\n sysenter\n ud2\n 1: mov %%cs, %%eax\n mov %%ss, %%ebx\n .code64"));
        check_ran("sysenter_compat");
        check_eq("sysexit_compat_cs", (u16)out.rax, 0x1b);
        check_eq("sysexit_compat_ss", (u16)out.rbx, 0x23);
        user_code = UCODE;
        wrmsr(0x174, 0);
        run_user(c = USER_SNIPPET("sysenter"));
        check_trap("sysenter_null_cs", c, GP, 0, 0);
        wrmsr(0x174, KCODE);
        run_user(c = USER_SNIPPET("sysexitl"));
        check_trap("sysexit_user", c, GP, 0, 0);
    }
}

static void bases(void)
{
    const void *c;
    wrmsr(0xc0000101, 0x1111);
    wrmsr(0xc0000102, 0x2222);
    in = (struct regs){};
    run(c = SNIPPET("swapgs"));
    check_eq("swapgs_gs", rdmsr(0xc0000101), 0x2222);
    check_eq("swapgs_kernel_gs", rdmsr(0xc0000102), 0x1111);
    run_user(c = USER_SNIPPET("swapgs"));
    check_trap("swapgs_user", c, GP, 0, 0);
    run(c = SNIPPET("rdfsbase %%rax"));
    check_trap("rdfsbase_without_fsgsbase", c, UD, 0, 0);
    if (cpuid_reg(7, 0, EBX) & 1) {
        write_cr4(read_cr4() | CR4_FSGSBASE);
        in = (struct regs){.rax = 0x123456789abc, .rcx = NON_CANONICAL};
        run_user(c = USER_SNIPPET("wrfsbase %%rax\n rdfsbase %%rdx\n wrgsbase %%eax\n rdgsbase %%rbx"));
        check_ran("fsgsbase_user");
        check_eq("wrfsbase", out.rdx, 0x123456789abc);
        check_eq("wrgsbase_32", out.rbx, 0x56789abc);
        check_eq("wrfsbase_msr", rdmsr(0xc0000100), 0x123456789abc);
        run_user(c = USER_SNIPPET("wrfsbase %%rcx"));
        check_trap("wrfsbase_non_canonical", c, GP, 0, 0);
        user_code = UCODE32;
        run_user(c = USER_SNIPPET(".byte 0xf3, 0x0f, 0xae, 0xd0"));
        check_trap("wrfsbase_compat", c, UD, 0, 0);
        user_code = UCODE;
        write_cr4(read_cr4() & ~(u64)CR4_FSGSBASE);
    }
    static u64 value = 0x7766554433221100;
    wrmsr(0xc0000100, (u64)&value - 0x100);
    run(c = SNIPPET("mov %%fs:0x100, %%rax"));
    check_eq("fs_override", out.rax, value);
    in.rdi = 0x200;
    wrmsr(0xc0000100, (u64)&value - 0x180);
    run(c = SNIPPET("lea -0x80(%%rdi), %%rdi\n mov %%fs:(%%edi), %%rax"));
    check_eq("fs_base_added_after_32_bit_address", out.rax, value);
    in.rdi = NON_CANONICAL - (u64)&value;
    wrmsr(0xc0000100, (u64)&value);
    run(c = SNIPPET("mov %%fs:(%%rdi), %%rax"));
    check_trap("fs_sum_non_canonical", c, GP, 0, 0);
    wrmsr(0xc0000100, 0);
    wrmsr(0xc0000101, 0);
}

void kernel_main(void)
{
    loads();
    inspections();
    local_table();
    far_transfers();
    returns();
    compatibility();
    system_calls();
    bases();
}
