/* Self-modifying code, string instructions with faults, LOCK, bit strings: memory as programs see it. */
#include "kernel64.h"

#define AREA 0x8000000000ull
static u8 *page1, *page2;

/* SDM volume 3, 8.1.3: code modified through its own address needs no more than a jump on modern CPUs. */
static void self_modifying(void)
{
    const void *c;
    in = (struct regs){};
    /* The next instruction but one of the same block: mov $1, %eax becomes mov $2, %eax. */
    run(c = SNIPPET("movb $2, 1f+1(%%rip)\n nop\n 1: mov $1, %%eax"));
    check_eq("smc_same_block", out.rax, 2);
    run(c = SNIPPET("movb $7, 1f+1(%%rip)\n jmp 1f\n 1: mov $1, %%eax"));
    check_eq("smc_after_jump", out.rax, 7);
    /* A loop that rewrites itself each time. */
    run(c = SNIPPET("xor %%edx, %%edx\n mov $20, %%ecx\n 2: movb %%cl, 1f+1(%%rip)\n jmp 1f\n 1: mov $0, %%eax\n add %%eax, %%edx\n dec %%ecx\n jnz 2b"));
    check_eq("smc_loop", out.rdx, 210);
    /* Opcode changes, lengths change: nop; nop; nop -> add $5, %eax (3 bytes). */
    run(c = SNIPPET("xor %%eax, %%eax\n movl $0x9005c083, 1f(%%rip)\n jmp 1f\n 1: nop\n nop\n nop\n nop"));
    check_eq("smc_opcode", out.rax, 5);
    /* By REP MOVSB, by a 16-byte store, by a locked exchange. */
    run(c = SNIPPET("lea 3f(%%rip), %%rsi\n lea 1f(%%rip), %%rdi\n mov $5, %%ecx\n rep movsb\n jmp 1f\n 1: mov $1, %%eax\n jmp 4f\n 3: mov $0x99, %%eax\n 4: nop"));
    check_eq("smc_rep_movs", out.rax, 0x99);
    run(c = SNIPPET("mov $0x77, %%cl\n lock xchg %%cl, 1f+1(%%rip)\n jmp 1f\n 1: mov $1, %%eax"));
    check_eq("smc_xchg", out.rax, 0x77);
    /* Through another linear address of the same page. */
    u8 code[] = {0xb8, 1, 0, 0, 0, 0xc3};
    map(AREA, (u64)page1, P | W);
    memcpy(page1, code, sizeof code);
    in.rdi = AREA;
    run(SNIPPET("call *%%rdi"));
    check_eq("smc_alias_before", out.rax, 1);
    *(volatile u8 *)(page1 + 1) = 3;
    run(SNIPPET("cpuid\n call *%%rdi"));
    check_eq("smc_alias_after", out.rax, 3);
    for (int i = 0; i < 3; i++) {
        *(volatile u8 *)(page1 + 1) = 10 + i;
        run(SNIPPET("cpuid\n call *%%rdi"));
        check_eq("smc_alias_again", out.rax, 10 + i);
    }
    /* The page of the code is replaced by another. */
    memcpy(page2, code, sizeof code);
    page2[1] = 42;
    map(AREA, (u64)page2, P | W);
    run(SNIPPET("call *%%rdi"));
    check_eq("code_page_remapped", out.rax, 42);
    /* An instruction over two pages, its second half written. */
    map(AREA, (u64)page1, P | W);
    map(AREA + 4096, (u64)page2, P | W);
    memcpy((u8 *)AREA + 4094, code, sizeof code);
    in.rdi = AREA + 4094;
    run(SNIPPET("call *%%rdi"));
    check_eq("smc_cross_page_before", out.rax, 1);
    page2[0] = 0x34;
    run(SNIPPET("cpuid\n call *%%rdi"));
    check_eq("smc_cross_page_second_half", out.rax, 0x3401);
    page1[4095] = 0x12;
    run(SNIPPET("cpuid\n call *%%rdi"));
    check_eq("smc_cross_page_first_half", out.rax, 0x3412);
    map(AREA + 4096, (u64)page1, P | W);
    memcpy(page1, code + 2, 4);
    run(SNIPPET("cpuid\n call *%%rdi"));
    check_eq("smc_cross_page_remapped", out.rax, 0x12);
    /* PUSH onto the code that runs next, and CALL's return address over code. */
    run(c = SNIPPET("mov %%rsp, %%rcx\n lea 1f+8(%%rip), %%rsp\n mov 2f(%%rip), %%rax\n push %%rax\n jmp 1f\n 1: .skip 8, 0x90\n mov %%rcx, %%rsp\n jmp 3f\n .align 8\n 2: mov $0x55, %%edx\n nop\n nop\n nop\n 3: nop"));
    check_eq("smc_push", out.rdx, 0x55);
}

static void strings(void)
{
    const void *c;
    map(AREA, (u64)page1, P | W);
    map(AREA + 4096, 0, 0);
    memset(page1, 0, 4096);
#define REP_CASE(name, insn, setup, n, rdi_, rsi_, count)                                          \
    in = setup;                                                                                    \
    run(c = SNIPPET(insn));                                                                        \
    check(name, trap.vector == PF && trap.rip == (u64)c + (n) && out.rdi == (rdi_) && out.rsi == (rsi_) && out.rcx == (count), \
          "vector %d RIP +%lx RDI %lx RSI %lx RCX %lx CR2 %lx", trap.vector, trap.rip - (u64)c, out.rdi, out.rsi, out.rcx, trap.cr2)
#define REGS(...) ((struct regs){__VA_ARGS__})
    u64 end = AREA + 4096, source = (u64)page2;
    REP_CASE("rep_stosb_fault", "rep stosb", REGS(.rdi = end - 10, .rcx = 30, .rax = 0x5a), 0, end, 0ull, 20ull);
    check_eq("rep_stosb_fault_cr2", trap.cr2, end);
    check_eq("rep_stosb_fault_error", trap.error, 2);
    check("rep_stosb_written", page1[4095] == 0x5a && page1[4086] == 0x5a && page1[4085] == 0, "");
    REP_CASE("rep_stosq_fault", "rep stosq", REGS(.rdi = end - 20, .rcx = 30), 0, end - 4, 0ull, 28ull);
    check_eq("rep_stosq_fault_cr2", trap.cr2, end);
    REP_CASE("rep_movsb_write_fault", "rep movsb", REGS(.rdi = end - 5, .rsi = source, .rcx = 100), 0, end, source + 5, 95ull);
    REP_CASE("rep_movsd_read_fault", "rep movsl", REGS(.rdi = source, .rsi = end - 8, .rcx = 9), 0, source + 8, end, 7ull);
    check_eq("rep_movsd_read_fault_error", trap.error, 0);
    REP_CASE("rep_movsq_first_fault", "rep movsq", REGS(.rdi = source, .rsi = end, .rcx = 9), 0, source, end, 9ull);
    REP_CASE("rep_lodsb_fault", "rep lodsb", REGS(.rsi = end - 3, .rcx = 9), 0, 0ull, end, 6ull);
    memset(page1, 1, 4096);
    REP_CASE("repne_scasb_fault", "repne scasb", REGS(.rdi = end - 7, .rcx = ~0ull), 0, end, 0ull, ~0ull - 7);
    memset(page2, 1, 4096);
    REP_CASE("repe_cmpsb_fault", "repe cmpsb", REGS(.rdi = source, .rsi = end - 6, .rcx = 50), 0, source + 6, end, 44ull);
    REP_CASE("rep_stosb_down_fault", "std\n rep stosb", REGS(.rdi = AREA + 2, .rcx = 30), 1, AREA - 1, 0ull, 27ull);
    REP_CASE("rep_movsb_down_fault", "std\n rep movsb", REGS(.rdi = source + 100, .rsi = AREA + 3, .rcx = 30), 1, source + 96, AREA - 1, 26ull);
    asm volatile("cld");
    in = REGS(.rdi = end - 2, .rcx = 2);
    run(c = SNIPPET("rep stosb"));
    check_ran("rep_stosb_to_page_end");
    in = REGS(.rdi = end, .rsi = end, .rcx = 0);
    run(c = SNIPPET("rep stosb\n rep movsb\n repe cmpsb\n repne scasb\n rep lodsb"));
    check_ran("rep_zero_touches_nothing");
    /* Flags of a REPE CMPS that stops, and of one that does nothing. */
    memset(page1, 1, 64);
    memset(page2, 1, 64);
    page2[5] = 9;
    in = REGS(.rdi = source, .rsi = AREA, .rcx = 20);
    run(c = SNIPPET("repe cmpsb"));
    check("repe_cmpsb_stops", out.rcx == 14 && out.rdi == source + 6 && (out.rflags & (FL_ZF | FL_CF)) == FL_CF, "RCX %lx flags %lx", out.rcx, out.rflags);
    in = REGS(.rcx = 0);
    run(c = SNIPPET("xor %%eax, %%eax\n repne scasb"));
    check("repne_scasb_zero_keeps_flags", out.rflags & FL_ZF, "flags %lx", out.rflags);
    /* Overlapping MOVSB replicates; overlapping upwards by one. */
    for (int i = 0; i < 32; i++)
        page1[i] = i;
    in = REGS(.rdi = AREA + 3, .rsi = AREA, .rcx = 12);
    run(c = SNIPPET("rep movsb"));
    int ok = 1;
    for (int i = 0; i < 15; i++)
        ok &= page1[i] == i % 3;
    check("movsb_overlap_replicates", ok, "%x %x %x", page1[3], page1[6], page1[14]);
    for (int i = 0; i < 32; i++)
        page1[i] = i;
    in = REGS(.rdi = AREA + 14, .rsi = AREA + 11, .rcx = 12);
    run(c = SNIPPET("std\n rep movsb\n cld"));
    ok = 1;
    for (int i = 3; i < 15; i++)
        ok &= page1[i] == i - 3;
    check("movsb_overlap_down_copies", ok, "");
    for (int i = 0; i < 64; i++)
        page1[i] = i;
    in = REGS(.rdi = AREA + 4, .rsi = AREA, .rcx = 6);
    run(c = SNIPPET("rep movsq"));
    ok = 1;
    for (int i = 0; i < 48; i += 8)
        ok &= page1[i + 4] == (i ? page1[i] : 0);
    check("movsq_overlap", ok && out.rcx == 0 && out.rdi == AREA + 52, "");
    /* A 32-bit address size uses and zero-extends ECX, ESI, EDI. */
    in = REGS(.rdi = 0xffffffff00000000 | (u64)page1, .rsi = 0xffffffff00000000 | source, .rcx = 0xffffffff00000004);
    run(c = SNIPPET("addr32 rep movsb"));
    check("addr32_rep_movsb", trap.vector == -1 && out.rcx == 0 && out.rdi == (u64)page1 + 4 && out.rsi == source + 4, "vector %d RCX %lx RDI %lx RSI %lx", trap.vector, out.rcx, out.rdi, out.rsi);
    in = REGS(.rdi = 0xffffffff00000000 | (u64)page1, .rcx = 5);
    run(c = SNIPPET("addr32 stosb"));
    check("addr32_stosb", trap.vector == -1 && out.rdi == (u64)page1 + 1, "RDI %lx", out.rdi);
    in = REGS(.rcx = 0xffffffff00000001);
    run(c = SNIPPET("xor %%eax, %%eax\n addr32 loop 1f\n mov $1, %%eax\n 1: nop"));
    check_eq("addr32_loop", out.rax, 1);
    /* Non-canonical in the middle. */
    in = REGS(.rdi = 0x7ffffffffffc, .rcx = 8);
    map(0x7ffffffff000, (u64)page1, P | W);
    run(c = SNIPPET("rep stosb"));
    check("rep_stosb_into_non_canonical", trap.vector == GP && trap.error == 0 && out.rcx == 4 && out.rdi == 0x800000000000, "vector %d RCX %lx", trap.vector, out.rcx);
    /* A store of a whole large range with A/D bits. */
    map(AREA, (u64)page1, P | W);
    map(AREA + 4096, (u64)page2, P | W);
    map(AREA + 8192, (u64)page1, P);
    in = REGS(.rdi = AREA, .rcx = 3 * 512, .rax = 0x0123456789abcdef);
    run(c = SNIPPET("rep stosq"));
    check("rep_stosq_read_only_page", trap.vector == PF && trap.error == 3 && out.rcx == 512 && out.rdi == AREA + 8192, "vector %d RCX %lx", trap.vector, out.rcx);
    check_eq("rep_stosq_dirty", *entry_of(AREA + 4096, 1) & D, D);
    check_eq("rep_stosq_last", *(u64 *)(page2 + 4088), 0x0123456789abcdef);
    /* Port strings with a faulting buffer: nothing is advanced. */
    map(AREA + 8192, 0, 0);
    REP_CASE("rep_insb_fault", "mov $0x80, %%edx\n rep insb", REGS(.rdi = AREA + 8190, .rcx = 9), 5, AREA + 8192, 0ull, 7ull);
    REP_CASE("rep_outsb_fault", "mov $0x80, %%edx\n rep outsb", REGS(.rsi = AREA + 8190, .rcx = 9), 5, 0ull, AREA + 8192, 7ull);
}

static void atomics(void)
{
    const void *c;
    static u64 data[8] __attribute__((aligned(64)));
    in = (struct regs){.rdi = (u64)data + 8};
    run(c = SNIPPET("lock cmpxchg16b (%%rdi)"));
    check_trap("cmpxchg16b_misaligned", c, GP, 0, 0);
    data[0] = 1;
    data[1] = 2;
    in = (struct regs){.rdi = (u64)data, .rax = 1, .rdx = 2, .rbx = 3, .rcx = 4};
    run(c = SNIPPET("lock cmpxchg16b (%%rdi)"));
    check("cmpxchg16b_equal", data[0] == 3 && data[1] == 4 && out.rflags & FL_ZF, "%lx %lx", data[0], data[1]);
    run(c = SNIPPET("lock cmpxchg16b (%%rdi)"));
    check("cmpxchg16b_differs", out.rax == 3 && out.rdx == 4 && !(out.rflags & FL_ZF), "%lx %lx", out.rax, out.rdx);
    in = (struct regs){.rdi = (u64)data + 1};
    run(c = SNIPPET("lock cmpxchg8b (%%rdi)"));
    check_ran("cmpxchg8b_misaligned_allowed");
    run(c = SNIPPET(".byte 0x0f, 0xc7, 0xc8"));
    check_trap("cmpxchg8b_register", c, UD, 0, 0);
    data[0] = 0xffffffff00000005;
    in = (struct regs){.rdi = (u64)data, .rax = 0xffffffff00000007, .rcx = 9};
    run(c = SNIPPET("cmpxchg %%ecx, (%%rdi)"));
    check_eq("cmpxchg32_failed_zero_extends_eax", out.rax, 5);
    in.rax = 0xffffffff00000005;
    run(c = SNIPPET("cmpxchg %%ecx, (%%rdi)"));
    check("cmpxchg32_equal", data[0] == 0xffffffff00000009, "%lx", data[0]);
    in = (struct regs){.rax = 5, .rcx = 7, .rdi = (u64)data};
    run(c = SNIPPET("xadd %%rax, %%rcx\n xadd %%rax, %%rax"));
    check("xadd_registers", out.rcx == 12 && out.rax == 14, "%lx %lx", out.rcx, out.rax);
    data[0] = 10;
    run(c = SNIPPET("lock xadd %%rax, (%%rdi)"));
    check("xadd_memory", data[0] == 15 && out.rax == 10, "%lx %lx", data[0], out.rax);
    map(AREA, (u64)page1, P);
    in = (struct regs){.rdi = AREA, .rax = 5};
    run(c = SNIPPET("lock xadd %%rax, (%%rdi)"));
    check_fault("xadd_read_only", c, 3, 0, AREA);
    check_eq("xadd_fault_keeps_register", out.rax, 5);
    run(c = SNIPPET("xchg %%rax, (%%rdi)"));
    check_fault("xchg_read_only", c, 3, 0, AREA);
    run(c = SNIPPET("lock cmpxchg %%rcx, (%%rdi)"));
    check_fault("cmpxchg_read_only", c, 3, 0, AREA);
    /* Bit offsets reach far, on both sides. */
    map(AREA, (u64)page1, P | W);
    map(AREA + 4096, (u64)page2, P | W);
    memset(page1, 0, 4096);
    memset(page2, 0, 4096);
    in = (struct regs){.rdi = AREA, .rcx = 4096 * 8 + 77};
    run(c = SNIPPET("bts %%rcx, (%%rdi)"));
    check_eq("bts_far", page2[9], 1 << 5);
    in = (struct regs){.rdi = AREA + 4096 + 100, .rcx = -(100 * 8 + 3ull)};
    run(c = SNIPPET("lock bts %%rcx, (%%rdi)"));
    check_eq("bts_negative", page1[4095], 1 << 5);
    run(c = SNIPPET("bt %%rcx, (%%rdi)\n setc %%al"));
    check_eq("bt_negative", out.rax & 1, 1);
    in = (struct regs){.rdi = AREA + 8, .rcx = 0x80000000};
    run(c = SNIPPET("bt %%ecx, (%%rdi)"));
    check("bt_32_offset_is_signed", trap.vector == PF && trap.cr2 == AREA + 8 - 0x10000000, "vector %d CR2 %lx", trap.vector, trap.cr2);
    in = (struct regs){.rdi = AREA + 4096, .rcx = 0xffff};
    run(c = SNIPPET("btc %%cx, (%%rdi)"));
    check_eq("btc_16_offset_is_signed", page1[4095], 0x80 | 1 << 5);
    in = (struct regs){.rdi = AREA + 4088};
    run(c = SNIPPET("btsl $35, (%%rdi)"));
    check_eq("bts_immediate_wraps", page1[4088], 8);
    /* Partial register writes and high bytes. */
    in = (struct regs){.rax = ~0ull, .rcx = 0x1234};
    run(c = SNIPPET("mov %%ch, %%al\n mov %%cl, %%ah"));
    check_eq("high_bytes", out.rax, 0xffffffffffff3412);
    run(c = SNIPPET("mov %%cx, %%ax"));
    check_eq("word_write_merges", out.rax, 0xffffffffffff1234);
    run(c = SNIPPET("xchg %%eax, %%eax\n .byte 0x87, 0xc0"));
    check_eq("xchg_eax_zero_extends", out.rax, 0xffffffff);
    in = (struct regs){.rax = ~0ull};
    run(c = SNIPPET("xor %%edx, %%edx\n test %%edx, %%edx\n cmovnz %%ecx, %%eax"));
    check_eq("cmov_false_zero_extends", out.rax, 0xffffffff);
    in = (struct regs){.rdi = 0x5000000000};
    run(c = SNIPPET("xor %%edx, %%edx\n cmovnz (%%rdi), %%eax"));
    check_fault("cmov_false_still_reads", c, 0, 2, 0x5000000000);
    in = (struct regs){.rdi = 0x5000000000};
    run(c = SNIPPET("pop (%%rdi)"));
    check_fault("pop_memory_fault", c, 2, 0, 0x5000000000);
    u64 rsp_then = trap.rsp;
    run(c = SNIPPET("push (%%rdi)"));
    check_fault("push_memory_fault", c, 0, 0, 0x5000000000);
    check_eq("pop_fault_keeps_rsp", rsp_then, trap.rsp);
    run(c = SNIPPET("push %%rbp\n mov %%rsp, %%rcx\n push %%rsp\n pop %%rax\n pop %%rbp"));
    check_eq("push_rsp_is_old_value", out.rax, out.rcx);
    run(c = SNIPPET("mov %%rsp, %%rcx\n push $1\n push $0x77\n pop (%%rsp)\n pop %%rax\n mov %%rcx, %%rsp"));
    check_eq("pop_rsp_memory_uses_new_rsp", out.rax, 0x77);
    run(c = SNIPPET("mov %%rsp, %%rcx\n mov %%rsp, %%rbp\n enter $32, $3\n mov %%rsp, %%rdx\n leave\n mov %%rsp, %%rbx"));
    check("enter_leave", out.rcx - out.rdx == 8 + 24 + 32 && out.rbx == out.rcx, "%lx %lx", out.rcx - out.rdx, out.rcx - out.rbx);
}

void kernel_main(void)
{
    page1 = page_alloc();
    page2 = page_alloc();
    self_modifying();
    strings();
    atomics();
}
