/* Single step, breakpoints, DR6/DR7, RF, STI and MOV SS shadows. SDM volume 3, chapters 6.8 and 17. */
#include "kernel64.h"

enum { BS = 1 << 14, BD = 1 << 13 };
static struct { u64 rip, dr6, rflags, cs; } log[64];
static u32 logged;

/* Records each #DB and goes on; a step program ends itself by clearing TF in its frame at 40. */
static int record(struct frame *frame)
{
    if (logged < 64) {
        log[logged].rip = frame->rip;
        log[logged].dr6 = trap.dr6;
        log[logged].rflags = frame->rflags;
        log[logged].cs = frame->cs;
    }
    if (++logged >= 40)
        frame->rflags &= ~(u64)FL_TF;
    write_dr6(0xffff0ff0);
    if (trap.dr6 & 15 && !(trap.dr6 & BS))
        frame->rflags |= FL_RF;
    return 0;
}

static void begin(void)
{
    logged = 0;
    write_dr6(0xffff0ff0);
    handlers[DB] = record;
}

static void check_log(const char *name, const void *code, u32 count, const u16 *offsets, u64 dr6)
{
    int ok = logged == count;
    for (u32 i = 0; i < count && i < logged; i++)
        ok = ok && log[i].rip == (u64)code + offsets[i] && (log[i].dr6 & 0xffff) == (0x0ff0 | dr6);
    check(name, ok, "%d traps, first +%lx +%lx +%lx +%lx, DR6 %lx", logged, log[0].rip - (u64)code,
          log[1].rip - (u64)code, log[2].rip - (u64)code, log[3].rip - (u64)code, log[0].dr6);
}
#define LOG(name, code, dr6, ...) check_log(name, code, sizeof((u16[]){__VA_ARGS__}) / 2, (u16[]){__VA_ARGS__}, dr6)

#define SET_TF "pushfq\n orl $0x100, (%%rsp)\n popfq\n"      /* 1 + 7 + 1 bytes */
#define CLEAR_TF "pushfq\n andl $~0x100, (%%rsp)\n popfq\n"  /* traps after PUSHFQ, AND, POPFQ */

static void single_step(void)
{
    const void *c;
    begin();
    in = (struct regs){};
    run(c = SNIPPET(SET_TF "nop\n xor %%eax, %%eax\n" CLEAR_TF));
    /* POPFQ that sets TF does not trap; that which clears it does. */
    LOG("tf_popf", c, BS, 10, 12, 13, 20, 21);
    begin();
    run(c = SNIPPET("xor %%ecx, %%ecx\n mov $3, %%cl\n lea -16(%%rsp), %%rdi\n" SET_TF "rep stosb\n" CLEAR_TF));
    /* A trap after each iteration, with RIP at the instruction until the last. */
    LOG("tf_rep", c, BS, 18, 18, 20, 21, 28, 29);
    begin();
    run(c = SNIPPET("xor %%ecx, %%ecx\n lea -16(%%rsp), %%rdi\n" SET_TF "rep stosb\n" CLEAR_TF));
    LOG("tf_rep_zero", c, BS, 18, 19, 26, 27);
    begin();
    run(c = SNIPPET("mov %%ss, %%ecx\n" SET_TF "mov %%ecx, %%ss\n nop\n" CLEAR_TF));
    /* MOV SS holds the trap off until after the next instruction. */
    LOG("tf_mov_ss", c, BS, 14, 15, 22, 23);
    begin();
    run(c = SNIPPET(SET_TF "jmp 1f\n nop\n 1: nop\n" CLEAR_TF));
    LOG("tf_jump", c, BS, 12, 13, 14, 21, 22);
    begin();
    run(c = SNIPPET(SET_TF "cpuid\n rdtsc\n" CLEAR_TF));
    LOG("tf_cpuid_rdtsc", c, BS, 11, 13, 14, 21, 22);
    begin();
    run(c = SNIPPET(SET_TF "int $0x90\n nop\n" CLEAR_TF));
    /* INT n clears TF in the handler; the trap is the next instruction's after IRET. */
    LOG("tf_int_n", c, BS, 12, 13, 20, 21);
    check_eq("tf_in_pushed_flags", log[0].rflags & FL_TF, FL_TF);
    begin();
    run(c = SNIPPET("mov %%ss, %%eax\n mov %%rsp, %%rcx\n push %%rax\n push %%rcx\n pushfq\n orl $0x100, (%%rsp)\n mov %%cs, %%eax\n push %%rax\n lea 1f(%%rip), %%rax\n push %%rax\n iretq\n 1: nop\n nop\n" CLEAR_TF));
    check("tf_iret", logged == 5 && *(u8 *)(log[0].rip - 1) == 0x90 && *(u8 *)log[0].rip == 0x90, "%d traps", logged);
    begin();
    run(c = SNIPPET(SET_TF "ud2\n"));
    check("tf_fault_has_no_trap", logged == 0 && trap.vector == UD && trap.rflags & FL_TF, "%d traps vector %d", logged, trap.vector);
    begin();
    user_rflags = 2 | FL_TF;
    run_user(c = USER_SNIPPET("nop\n nop\n"));
    LOG("tf_user", c, BS, 1, 2);
    check_eq("tf_user_cs", log[0].cs, UCODE);
    /* SYSCALL with TF not in the mask traps in ring 0, at the target; with it in the mask, not. */
    extern char syscall_back[];
    wrmsr(0xc0000081, (u64)KCODE << 32 | 0x18ull << 48);
    wrmsr(0xc0000082, (u64)syscall_back);
    wrmsr(0xc0000084, FL_TF);
    begin();
    run_user(c = USER_SNIPPET("nop\n syscall\n nop\n"));
    /* SYSRET that sets TF traps at once, unlike IRET. */
    LOG("tf_syscall_masked", c, BS, 1, 3, 4);
    check("tf_syscall_r11", out.r11 & FL_TF, "R11 %lx", out.r11);
    user_rflags = 2;
    handlers[DB] = 0;
}
asm(".text\n.globl syscall_back\nsyscall_back: mov %rsp, %r8\n sysretq");

static void breakpoints(void)
{
    const void *c;
    in = (struct regs){};
    /* Instruction breakpoint: a fault, before the instruction; RF lets it run. */
    begin();
    c = SNIPPET("nop\n nop\n inc %%eax\n");
    write_dr0((u64)c + 2);
    write_dr7(0x403);
    run(c);
    LOG("dr0_execute", c, 1, 2);
    check_eq("dr0_execute_ran", out.rax, 1);
    check_eq("dr0_execute_rf_not_pushed", log[0].rflags & FL_RF, 0);
    write_dr0((u64)c + 3);
    begin();
    run(c);
    check_eq("dr0_inside_instruction", logged, 0);
    /* Data: traps, after the access; length and alignment. */
    static u64 data[4] __attribute__((aligned(32)));
    in = (struct regs){.rdi = (u64)data};
    write_dr0((u64)data);
    write_dr7(0x403 | 0xd0000); /* write, 4 bytes */
    begin();
    run(c = SNIPPET("mov (%%rdi), %%eax\n movb %%al, 3(%%rdi)\n movb %%al, 4(%%rdi)\n nop\n"));
    LOG("dr0_write", c, 1, 5);
    write_dr7(0x403 | 0xf0000); /* read or write */
    begin();
    run(c);
    LOG("dr0_read_write", c, 1, 2, 5);
    write_dr7(0x403 | 0xb0000); /* 8 bytes, read or write */
    begin();
    run(c);
    LOG("dr0_eight_bytes", c, 1, 2, 5, 8);
    write_dr0((u64)data + 2);
    write_dr7(0x403 | 0x70000); /* 2 bytes */
    begin();
    run(c);
    LOG("dr0_two_bytes", c, 1, 2, 5);
    begin();
    run(c = SNIPPET("incl -1(%%rdi)\n incl 1(%%rdi)\n incb 4(%%rdi)\n"));
    LOG("dr0_overlap", c, 1, 3, 6);
    write_dr0((u64)data);
    write_dr1((u64)data + 8);
    write_dr7(0x40f | 0xd0000 | 0xd00000);
    begin();
    in.rcx = 4;
    in.rax = 0;
    run(c = SNIPPET("rep stosl\n nop\n"));
    check("rep_data_breakpoints", logged == 2 && log[0].rip == (u64)c && (log[0].dr6 & 15) == 1 && (log[1].dr6 & 15) == 2,
          "%d traps +%lx DR6 %lx", logged, log[0].rip - (u64)c, log[0].dr6);
    begin();
    in.rdi = (u64)data;
    run(c = SNIPPET("movups %%xmm0, (%%rdi)\n nop\n"));
    LOG("two_at_once", c, 3, 3);
    begin();
    run(c = SNIPPET("movups %%xmm0, 16(%%rdi)\n nop\n push %%rax\n pop %%rax\n"));
    check_eq("no_breakpoint", logged, 0);
    /* Disabled ones may show in DR6, but do not trap alone. */
    write_dr7(0x400 | 0xd0000);
    begin();
    run(c = SNIPPET("mov %%eax, (%%rdi)\n nop\n"));
    check_eq("disabled_breakpoint", logged, 0);
    /* Both single step and a data breakpoint. */
    write_dr7(0x403 | 0xd0000);
    begin();
    run(c = SNIPPET(SET_TF "mov %%eax, (%%rdi)\n" CLEAR_TF));
    check("step_and_data", logged == 4 && (log[0].dr6 & 0xffff) == (0xff0 | BS | 1) && (log[1].dr6 & 0xffff) == (0xff0 | BS), "%d traps DR6 %lx", logged, log[0].dr6);
    /* MOV SS of a watched word: the trap waits for the next instruction. */
    in.rdi = (u64)data;
    data[0] = KDATA;
    write_dr7(0x403 | 0xf0000);
    begin();
    run(c = SNIPPET("mov (%%rdi), %%ss\n nop\n nop\n"));
    LOG("mov_ss_data", c, 1, 3);
    /* RF in a POPF image is ignored, in an IRET image honoured. */
    c = SNIPPET("mov %%ss, %%eax\n mov %%rsp, %%rcx\n push %%rax\n push %%rcx\n pushfq\n orl $0x10000, (%%rsp)\n mov %%cs, %%eax\n push %%rax\n lea 1f(%%rip), %%rax\n push %%rax\n iretq\n 1: nop\n nop\n");
    const u8 *nop = c;
    while (!(nop[0] == 0x90 && nop[1] == 0x90))
        nop++;
    write_dr0((u64)nop);
    write_dr7(0x403);
    begin();
    run(c);
    check_eq("iret_rf_skips_breakpoint", logged, 0);
    write_dr0((u64)nop + 1);
    begin();
    run(c);
    check_eq("rf_lasts_one_instruction", logged, 1);
    /* A faulting instruction with a breakpoint: the breakpoint comes first. */
    c = SNIPPET("ud2\n");
    write_dr0((u64)c);
    begin();
    run(c);
    check("breakpoint_before_ud", logged == 1 && trap.vector == UD, "%d traps vector %d", logged, trap.vector);
    /* After IRET from the fault's handler with its RF, the instruction does not break again. */
    write_dr7(0x400);
    handlers[DB] = 0;
}

static void registers(void)
{
    const void *c;
    in = (struct regs){};
    write_dr7(0x400);
    write_dr6(0xffff0ff0);
    run(c = SNIPPET("int1\nnop"));
    check_trap("icebp", c, DB, 0, 1);
    check_eq("icebp_dr6", trap.dr6, 0xffff0ff0);
    write_dr6(0);
    check_eq("dr6_fixed_bits", read_dr6() & ~0x1f800ull, 0xffff07f0 & ~0x1f800ull);
    write_dr6(0xffff0ff0);
    write_dr7(0);
    check_eq("dr7_fixed_bit", read_dr7(), 0x400);
    /* GD: the next MOV of a debug register faults, with GD clear in the handler. */
    write_dr7(0x2400);
    run(c = SNIPPET("nop\n mov %%dr0, %%rax"));
    check_trap("gd_read", c, DB, 0, 1);
    check_eq("gd_dr6", trap.dr6 & 0xffff, 0xff0 | BD);
    check_eq("gd_cleared", read_dr7(), 0x400);
    write_dr6(0xffff0ff0);
    run_user(c = USER_SNIPPET("mov %%dr0, %%rax"));
    check_trap("dr_user", c, GP, 0, 0);
    run_user(c = USER_SNIPPET("mov %%rax, %%dr7"));
    check_trap("dr_user_write", c, GP, 0, 0);
    in.rax = 1ull << 32;
    run(c = SNIPPET("mov %%rax, %%dr7"));
    check_trap("dr7_high_bits", c, GP, 0, 0);
    run(c = SNIPPET("mov %%rax, %%dr6"));
    check_trap("dr6_high_bits", c, GP, 0, 0);
    run(c = SNIPPET("mov %%rax, %%dr4"));
    check_trap("dr4_high_bits", c, GP, 0, 0);
    in.rax = 0xffff0ff0;
    write_cr4(read_cr4() | CR4_DE);
    run(c = SNIPPET("mov %%rax, %%dr4"));
    check_trap("dr4_with_de", c, UD, 0, 0);
    run(c = SNIPPET("mov %%dr5, %%rax"));
    check_trap("dr5_with_de", c, UD, 0, 0);
    write_cr4(read_cr4() & ~(u64)CR4_DE);
    run(c = SNIPPET("mov %%dr5, %%rax"));
    check_eq("dr5_is_dr7", out.rax, 0x400);
    in.rax = 0x123456789abcdef0;
    run(c = SNIPPET("mov %%rax, %%dr3\n mov %%dr3, %%rcx"));
    check_eq("dr3_holds_64_bits", out.rcx, 0x123456789abcdef0);
}

/* An interrupt is pending (self-IPI); it comes only after the instruction that follows STI. */
static volatile u64 interrupted_at;
static int note_interrupt(struct frame *frame)
{
    interrupted_at = frame->rip;
    *(volatile u32 *)0xfee000b0 = 0;
    return 0;
}

static void shadows(void)
{
    const void *c;
    handlers[0x50] = note_interrupt;
    *(volatile u32 *)0xfee000f0 = 0x1ff;
    *(volatile u32 *)0xfee00080 = 0;
    in = (struct regs){.rdi = 0xfee00300};
#define SELF "movl $0x44050, (%%rdi)\n 9: testl $0x1000, (%%rdi)\n jnz 9b\n"
    const u8 *end;
    interrupted_at = 0;
    run(c = SNIPPET(SELF "sti\n nop\n nop\n cli"));
    for (end = c; *end != 0xfb; end++)
        ;
    check_eq("sti_shadow_one_instruction", interrupted_at - (u64)end, 2);
    interrupted_at = 0;
    run(c = SNIPPET(SELF "sti\n cli\n nop"));
    check_eq("sti_cli_no_window", interrupted_at, 0);
    run(c = SNIPPET("sti\n nop\n nop\n cli"));
    check_eq("pending_delivered_later", interrupted_at - (u64)c, 2);
    interrupted_at = 0;
    run(c = SNIPPET(SELF "mov %%ss, %%eax\n sti\n mov %%eax, %%ss\n nop\n nop\n cli"));
    for (end = c; *end != 0xfb; end++)
        ;
    check("sti_mov_ss", interrupted_at - (u64)end == 3 || interrupted_at - (u64)end == 4, "+%lx", interrupted_at - (u64)end);
    interrupted_at = 0;
    run(c = SNIPPET("sti\n nop\n" SELF "mov %%ss, %%eax\n cli"));
    check("interrupt_while_enabled", interrupted_at > (u64)c, "%lx", interrupted_at);
    interrupted_at = 0;
    run(c = SNIPPET(SELF "sti\n hlt\n cli"));
    for (end = c; *end != 0xfb; end++)
        ;
    check_eq("sti_hlt_wakes", interrupted_at - (u64)end, 2);
    /* POPF and IRET have no shadow. */
    interrupted_at = 0;
    run(c = SNIPPET(SELF "pushfq\n orl $0x200, (%%rsp)\n popfq\n nop\n nop\n cli"));
    for (end = c; *end != 0x9d; end++)
        ;
    check_eq("popf_no_shadow", interrupted_at - (u64)end, 1);
    interrupted_at = 0;
    /* STI when IF is set already has no shadow. */
    run(c = SNIPPET("sti\n nop\n mov $0x44050, %%eax\n mov %%eax, (%%rdi)\n sti\n nop\n nop\n nop\n cli\n"));
    check("interrupt_soon", interrupted_at > (u64)c, "%lx", interrupted_at);
    /* CR8 holds it off. */
    interrupted_at = 0;
    write_cr8(5);
    run(c = SNIPPET(SELF "sti\n nop\n nop\n nop\n cli"));
    check_eq("cr8_masks", interrupted_at, 0);
    write_cr8(4);
    run(c = SNIPPET("sti\n nop\n nop\n nop\n cli"));
    check_eq("cr8_lets_through", interrupted_at - (u64)c, 2);
    run(c = SNIPPET("mov $0x10, %%eax\n mov %%rax, %%cr8"));
    check_trap("cr8_reserved", c, GP, 0, 5);
    write_cr8(0);
}

static int return_only(struct frame *frame)
{
    (void)frame;
    return 0;
}

void kernel_main(void)
{
    handlers[0x90] = return_only;
    single_step();
    breakpoints();
    registers();
    shadows();
}
