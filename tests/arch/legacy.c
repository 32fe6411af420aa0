/* Protected mode without long mode: 32-bit, PSE and PAE paging, call gates with parameters,
 * virtual-8086 mode, real mode. */
#include "kernel32.h"

static u32 directory[1024] __attribute__((aligned(4096)));
static u32 table[1024] __attribute__((aligned(4096)));
static u64 pae_pointers[4] __attribute__((aligned(32)));
static u64 pae_directory[512] __attribute__((aligned(4096)));
static u64 pae_table[512] __attribute__((aligned(4096)));
static u8 page1[4096] __attribute__((aligned(4096)));
static struct { u32 offset; u16 selector; } far_target;

static void exceptions(void)
{
    const void *c;
    in = (struct regs){};
    run(c = SNIPPET("mov $0x7fffffff, %%eax\n inc %%eax\n into"));
    check_trap("of", c, OF, 0, 7);
    static u32 bounds[2] = {5, 10};
    in.edi = (u32)bounds;
    run(c = SNIPPET("mov $11, %%eax\n bound %%eax, (%%edi)"));
    check_trap("br", c, BR, 0, 5);
    run(c = SNIPPET("xor %%ecx, %%ecx\n div %%ecx"));
    check_trap("de", c, DE, 0, 2);
    run(c = SNIPPET("mov $0xfff8, %%eax\n mov %%eax, %%ds"));
    check_trap("gp_selector", c, GP, 0xfff8, 5);
    run(c = SNIPPET("xor %%eax, %%eax\n mov %%eax, %%ss"));
    check_trap("ss_null", c, GP, 0, 2);
    run(c = SNIPPET("aam $0"));
    check_trap("aam_zero", c, DE, 0, 0);
    run(c = SNIPPET(".byte 0xd6"));
    check("salc", trap.vector == -1 || trap.vector == UD, "%d", trap.vector);
    run_user(c = USER_SNIPPET("ud2"));
    check_trap("user_ud", c, UD, 0, 0);
    check("user_frame", trap.cs == UCODE && trap.ss == UDATA && trap.esp == user_esp, "%x %x %x", trap.cs, trap.ss, trap.esp);
    check_eq("user_frame_at_esp0", (u32)&trap.frame->es, (u32)esp0_stack_end);
    run_user(c = USER_SNIPPET("mov $0x10, %%eax\n mov %%eax, %%ds"));
    check_trap("user_kernel_data", c, GP, 0x10, 5);
    run_user(c = USER_SNIPPET("int $0x90"));
    check_trap("user_gate_dpl", c, GP, 0x90 * 8 + 2, 0);
}

static void gates(void)
{
    const void *c;
    /* A 32-bit call gate with two parameters, from ring 3. */
    extern char gate_entry[];
    gdt[FREE / 8] = ((u32)gate_entry & 0xffff) | KCODE << 16 | 2ull << 32 | 0xecull << 40 | (u64)((u32)gate_entry >> 16) << 48;
    far_target.selector = FREE;
    in = (struct regs){.edi = (u32)&far_target};
    run_user(c = USER_SNIPPET("push $0x1111\n push $0x2222\n lcall *(%%edi)\n mov %%esp, %%ebp\n mov %%cs, %%edi"));
    check_ran("call_gate");
    check_eq("call_gate_parameter_1", out.eax, 0x2222);
    check_eq("call_gate_parameter_2", out.ecx, 0x1111);
    check_eq("call_gate_return_esp", out.edx, user_esp - 8);
    check_eq("call_gate_return_ss", out.ebx & 0xffff, UDATA);
    check_eq("call_gate_stack", out.esi, (u32)esp0_stack_end - 24);
    check_eq("call_gate_pops_both", out.ebp, user_esp);
    check_eq("call_gate_back_cs", out.edi & 0xffff, UCODE);
    run(c = SNIPPET("lcall *(%%edi)\n.globl gate_entry\n jmp 1f\n gate_entry: mov 8(%%esp), %%eax\n mov 12(%%esp), %%ecx\n mov 16(%%esp), %%edx\n mov 20(%%esp), %%ebx\n mov %%esp, %%esi\n testb $3, 4(%%esp)\n jz 2f\n lret $8\n 2: lret\n 1:"));
    check_ran("call_gate_same_privilege");
}

static void paging32(void)
{
    const void *c;
    for (u32 i = 0; i < 1024; i++)
        directory[i] = i << 22 | PS | P | W | U;
    directory[1023] = 0;
    directory[512] = (u32)table | P | W | U;
    table[1] = (u32)page1 | P | W;
    write_cr4(read_cr4() | 16);
    write_cr3((u32)directory);
    write_cr0(read_cr0() | 0x80010000);
    u32 area = 0x80001000;
    in = (struct regs){.edi = area, .eax = 0x12345678};
    run(c = SNIPPET("mov %%eax, (%%edi)"));
    check_ran("paging_32_store");
    check_eq("paging_32_value", *(u32 *)page1, 0x12345678);
    check_eq("paging_32_bits", table[1] & (A | D), A | D);
    check_eq("paging_32_directory_bits", directory[512] & (A | D), A);
    run_user(c = USER_SNIPPET("mov (%%edi), %%eax"));
    check_fault("paging_32_user", c, 5, 0, area);
    in.edi = 0xffc00004;
    run(c = SNIPPET("mov %%eax, (%%edi)"));
    check_fault("paging_32_absent", c, 2, 0, 0xffc00004);
    in.edi = (u32)page1;
    directory[(u32)page1 >> 22] &= ~(A | D);
    write_cr3((u32)directory);
    run(c = SNIPPET("mov (%%edi), %%eax"));
    check_eq("pse_accessed", directory[(u32)page1 >> 22] & A, A);
    /* 4M pages with reserved bit 21 */
    directory[513] = 1 << 21 | PS | P | W;
    in.edi = 513u << 22;
    run(c = SNIPPET("mov (%%edi), %%eax"));
    check_fault("pse_reserved", c, 9, 0, 513u << 22);
    directory[513] = 0;
    /* Execution of any readable page: no NX. */
    page1[0] = 0xc3;
    in.edi = area;
    run(c = SNIPPET("call *%%edi"));
    check_ran("paging_32_execute");
    write_cr0(read_cr0() & ~0x80000000);

    /* PAE. */
    for (u32 i = 0; i < 512; i++)
        pae_directory[i] = (u64)i << 21 | PS | P | W | U;
    for (int i = 0; i < 4; i++)
        pae_pointers[i] = (i == 2) ? 0 : (u32)pae_directory | P;
    static u64 pae_directory2[512] __attribute__((aligned(4096)));
    pae_directory2[0] = (u32)pae_table | P | W | U;
    pae_table[1] = (u32)page1 | P | W | U;
    pae_pointers[2] = (u32)pae_directory2 | P;
    write_cr4(read_cr4() | 32);
    write_cr3((u32)pae_pointers);
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xc0000080));
    asm volatile("wrmsr" ::"a"(low | 0x800), "d"(high), "c"(0xc0000080));
    write_cr0(read_cr0() | 0x80000000);
    in.eax = 0x55;
    run(c = SNIPPET("movb %%al, 1(%%edi)"));
    check_ran("pae_store");
    check_eq("pae_value", page1[1], 0x55);
    check_eq("pae_bits", pae_table[1] & (A | D), A | D);
    pae_table[1] |= 1ull << 63;
    invlpg(area);
    run(c = SNIPPET("call *%%edi"));
    check("pae_nx", trap.vector == PF && trap.error == 0x11 && trap.cr2 == area, "%d %x", trap.vector, trap.error);
    pae_table[1] = (pae_table[1] & ~(1ull << 63)) | 1ull << 55;
    invlpg(area);
    run(c = SNIPPET("mov (%%edi), %%al"));
    check_fault("pae_reserved_high_bits", c, 9, 0, area);
    pae_table[1] &= ~(1ull << 55);
    invlpg(area);
    /* The pointers are read when CR3 is loaded, not at each walk. */
    u64 old = pae_pointers[2];
    pae_pointers[2] = 0;
    invlpg(area);
    run(c = SNIPPET("mov (%%edi), %%al"));
    check_ran("pae_pointers_are_registers");
    write_cr3((u32)pae_pointers);
    run(c = SNIPPET("mov (%%edi), %%al"));
    check_fault("pae_pointer_absent", c, 0, 0, area);
    pae_pointers[2] = old | 2;
    in.eax = (u32)pae_pointers;
    run(c = SNIPPET("mov %%eax, %%cr3"));
    check_trap("pae_pointer_reserved_gp", c, GP, 0, 0);
    pae_pointers[2] = old;
    write_cr3((u32)pae_pointers);
    run(c = SNIPPET("mov (%%edi), %%al"));
    check_ran("pae_pointer_reloaded");
    write_cr0(read_cr0() & ~0x80000000);
    write_cr4(read_cr4() & ~(16 + 32));
}

static void v86(void)
{
    u8 *code = (u8 *)0x8000;
    static const u8 program[] = {
        0x8c, 0xc8,             /* mov %cs, %ax */
        0x8c, 0xd3,             /* mov %ss, %bx */
        0x8c, 0xd9,             /* mov %ds, %cx */
        0xba, 0x34, 0x12,       /* mov $0x1234, %dx */
        0x36, 0x89, 0x16, 0x10, 0x00, /* mov %dx, %ss:0x10 */
        0x0f, 0x0b,             /* ud2 */
    };
    memcpy(code, program, sizeof program);
    user_eflags = 0x20002;
    run_v86();
    check("v86_ud", trap.vector == UD && trap.eip == 14 && trap.cs == 0x800, "%d at %x:%x", trap.vector, trap.cs, trap.eip);
    check("v86_segments", (out.eax & 0xffff) == 0x800 && (out.ebx & 0xffff) == 0x900 && (out.ecx & 0xffff) == 0x1002, "%x %x %x", out.eax, out.ebx, out.ecx);
    check_eq("v86_store", *(u16 *)0x9010, 0x1234);
    check_eq("v86_flag_pushed", trap.eflags >> 17 & 1, 1);
    check("v86_frame", trap.ss == 0x900 && trap.es == 0x1001 && trap.ds == 0x1002 && trap.fs == 0x1003 && trap.gs == 0x1004, "%x %x %x %x %x", trap.ss, trap.es, trap.ds, trap.fs, trap.gs);
    static const struct { const char *name; u8 code[3]; } sensitive[] = {
        {"v86_cli", {0xfa}}, {"v86_sti", {0xfb}}, {"v86_pushf", {0x9c}}, {"v86_popf", {0x9d}}, {"v86_int", {0xcd, 0x40}},
        {"v86_iret", {0xcf}}, {"v86_hlt", {0xf4}}, {"v86_mov_cr0", {0x0f, 0x20, 0xc0}}, {"v86_in", {0xe4, 0x80}},
    };
    for (u32 i = 0; i < sizeof sensitive / sizeof *sensitive; i++) {
        memcpy(code, sensitive[i].code, 3);
        run_v86();
        check(sensitive[i].name, trap.vector == GP && trap.error == 0 && trap.eip == 0, "%d %x at %x", trap.vector, trap.error, trap.eip);
    }
    memcpy(code, "\x9c\x58\xfa\x0f\x0b", 5); /* pushf; pop %ax; cli; ud2 */
    user_eflags = 0x23002;
    run_v86();
    check("v86_iopl_3", trap.vector == UD && trap.eip == 3 && (out.eax & 0x3000) == 0x3000, "%d at %x, %x", trap.vector, trap.eip, out.eax);
    memcpy(code, "\x0f\x00\xc8", 3); /* str */
    run_v86();
    check("v86_str_ud", trap.vector == UD, "%d", trap.vector);
    memcpy(code, "\x67\x66\xa1\x00\x00\x01\x00", 7); /* mov 0x10000, %eax */
    run_v86();
    check("v86_limit", trap.vector == GP && trap.error == 0, "%d", trap.vector);
    memcpy(code, "\xcc", 1);
    run_v86();
    check("v86_int3", trap.vector == BP && trap.eip == 1, "%d", trap.vector);
    user_eflags = 2;
}

static void real(void)
{
    extern u16 real_results[];
    extern char real_after_int[];
    extern u32 real_division, real_wrap;
    run_real();
    volatile u16 *r = real_results;
    check_eq("real_int_ip", r[0], (u32)real_after_int);
    check_eq("real_int_cs", r[1], 0);
    check("real_int_flags", (r[2] & 0x201) == 0x201, "%x", r[2]);
    check_eq("real_int_clears_if", r[3] & 0x200, 0);
    check_eq("real_div_ip", r[4], real_division);
    check_eq("real_wrap_gp_ip", r[5], real_wrap);
    check_eq("real_offset_wraps", r[6], 0x77);
    check_eq("real_segment", r[7], 0x1234);
    check_eq("real_32_bit_operand", r[8], 0x1234);
    check_eq("real_sp_wraps", r[9], 0xfffe);
    check_eq("real_above_1m", r[10] | (u32)r[11] << 16, *(volatile u32 *)0x100000);
}

void kernel_main(void)
{
    exceptions();
    gates();
    paging32();
    v86();
    real();
}
