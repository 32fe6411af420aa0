/* Four-level paging: permissions, accessed and dirty bits, reserved bits, SMEP, SMAP, PCID, crossing
 * accesses. Only what SDM volume 3 chapter 4 guarantees: translations are invalidated where due. */
#include "kernel64.h"

#define AREA 0x8000000000ull /* PML4 slot 1 */
static u8 *page1, *page2;

static void setup_area(u64 flags1, u64 flags2)
{
    map(AREA, (u64)page1, flags1);
    map(AREA + 4096, (u64)page2, flags2);
}

#define LOAD "mov (%%rdi), %%rax"
#define STORE "mov %%rax, (%%rdi)"

static void permissions(void)
{
    const void *c;
    in = (struct regs){.rdi = AREA + 8, .rax = 0x1122334455667788};
    setup_area(P | W | U, P | W | U);
    run_user(USER_SNIPPET(STORE));
    check_ran("user_page_store");
    check_eq("user_page_stored", *(u64 *)(page1 + 8), in.rax);
    setup_area(P | U, P | W | U);
    run_user(c = USER_SNIPPET(STORE));
    check_fault("read_only_user_store", c, 7, 0, AREA + 8);
    run(c = SNIPPET(STORE));
    check_fault("wp_supervisor_store", c, 3, 0, AREA + 8);
    write_cr0(read_cr0() & ~(u64)CR0_WP);
    run(c = SNIPPET(STORE));
    check_ran("wp_clear_supervisor_store");
    check_eq("wp_clear_sets_dirty", *entry_of(AREA, 1) & D, D);
    run_user(c = USER_SNIPPET(STORE));
    check_fault("wp_clear_user_store_still_faults", c, 7, 0, AREA + 8);
    write_cr0(read_cr0() | CR0_WP);
    setup_area(P | W, P | W);
    run_user(c = USER_SNIPPET(LOAD));
    check_fault("supervisor_page_user_load", c, 5, 0, AREA + 8);
    /* Upper levels restrict. */
    setup_area(P | W | U, P | W | U);
    for (int level = 2; level <= 4; level++) {
        u64 *entry = entry_of(AREA, level), old = *entry;
        *entry = old & ~(u64)U;
        write_cr3(read_cr3());
        run_user(c = USER_SNIPPET(LOAD));
        check_fault("upper_level_supervisor", c, 5, 0, AREA + 8);
        *entry = old & ~(u64)W;
        write_cr3(read_cr3());
        run_user(c = USER_SNIPPET(STORE));
        check_fault("upper_level_read_only", c, 7, 0, AREA + 8);
        *entry = 0;
        write_cr3(read_cr3());
        run(c = SNIPPET(LOAD));
        check_fault("upper_level_absent", c, 0, 0, AREA + 8);
        *entry = old | NX;
        write_cr3(read_cr3());
        page1[8] = 0xc3;
        run(c = SNIPPET("jmp *%%rdi"));
        check("upper_level_nx", trap.vector == PF && trap.error == 0x11 && trap.rip == AREA + 8, "vector %d error %lx", trap.vector, trap.error);
        *entry = old;
        write_cr3(read_cr3());
    }
    run(c = SNIPPET("jmp *%%rdi"));
    check_ran("execute");
    *entry_of(AREA, 1) |= NX;
    invlpg(AREA);
    run(c = SNIPPET("jmp *%%rdi"));
    check("nx_fetch", trap.vector == PF && trap.error == 0x11 && trap.cr2 == AREA + 8, "vector %d error %lx CR2 %lx", trap.vector, trap.error, trap.cr2);
    run(c = SNIPPET(LOAD));
    check_ran("nx_load");
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ull);
    write_cr3(read_cr3());
    run(c = SNIPPET(LOAD));
    check_fault("nx_reserved_without_nxe", c, 9, 0, AREA + 8);
    in.rdi = AREA + 4096 + 16;
    map(AREA + 4096, 0, 0);
    run(c = SNIPPET("jmp *%%rdi"));
    check("fetch_without_nxe_has_no_id_bit", trap.vector == PF && trap.error == 0, "vector %d error %lx", trap.vector, trap.error);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    write_cr3(read_cr3());
}

static void reserved(void)
{
    const void *c;
    in = (struct regs){.rdi = AREA + 8};
    setup_area(P | W | U, P | W | U);
    run(SNIPPET(LOAD));
    u64 bit = 1ull << 51;
    for (int level = 1; level <= 4; level++) {
        u64 *entry = entry_of(AREA, level), old = *entry;
        *entry = old | bit;
        write_cr3(read_cr3());
        run(c = SNIPPET(LOAD));
        check_fault("reserved_address_bit_load", c, 9, 0, AREA + 8);
        run_user(c = USER_SNIPPET(STORE));
        check_fault("reserved_address_bit_user_store", c, 15, 0, AREA + 8);
        if (level == 4) {
            *entry = old | PS;
            write_cr3(read_cr3());
            run(c = SNIPPET(LOAD));
            check_fault("pml4_page_size_reserved", c, 9, 0, AREA + 8);
        }
        *entry = bit;
        write_cr3(read_cr3());
        run(c = SNIPPET(LOAD));
        check_fault("absent_ignores_reserved", c, 0, 0, AREA + 8);
        *entry = old;
    }
    u64 *pde = entry_of(AREA, 2), old = *pde;
    *pde = 0x2000 | P | W | U | PS;
    write_cr3(read_cr3());
    run(c = SNIPPET(LOAD));
    check_fault("large_page_reserved_low_bits", c, 9, 0, AREA + 8);
    *pde = (1ull << 12) | P | W | U | PS; /* PAT */
    write_cr3(read_cr3());
    run(c = SNIPPET(LOAD));
    check_ran("large_page_pat_bit");
    *pde = old;
    write_cr3(read_cr3());
}

static void accessed_dirty(void)
{
    const void *c;
    u64 *pte = entry_of(AREA, 1);
    in = (struct regs){.rdi = AREA + 8};
    setup_area(P | W | U, P | W | U);
    for (int level = 2; level <= 4; level++)
        *entry_of(AREA, level) &= ~(u64)(A | D);
    write_cr3(read_cr3());
    run(SNIPPET(LOAD));
    check_eq("load_sets_accessed_only", *pte & (A | D), A);
    for (int level = 2; level <= 4; level++)
        check_eq("upper_levels_accessed_never_dirty", *entry_of(AREA, level) & (A | D), A);
    run(SNIPPET(STORE));
    check_eq("store_after_load_sets_dirty", *pte & (A | D), A | D);
    *pte &= ~(u64)(A | D);
    invlpg(AREA);
    run(SNIPPET(STORE));
    check_eq("store_sets_both", *pte & (A | D), A | D);
    *pte &= ~(u64)(A | D);
    invlpg(AREA);
    run(SNIPPET("lock cmpxchg %%ecx, (%%rdi)"));
    in.rax = 0x99;
    *pte &= ~(u64)(A | D);
    invlpg(AREA);
    run(SNIPPET("lock cmpxchg %%ecx, (%%rdi)"));
    check_eq("failed_cmpxchg_sets_dirty", *pte & (A | D), A | D);
    in.rax = 0;
    /* Accesses that fault by permission set neither at the leaf. */
    *pte = (u64)page1 | P | U;
    invlpg(AREA);
    run_user(c = USER_SNIPPET(STORE));
    check_fault("read_only_store_for_bits", c, 7, 0, AREA + 8);
    check_eq("failed_store_not_dirty", *pte & D, 0);
    *pte = (u64)page1 | P | W;
    invlpg(AREA);
    run_user(USER_SNIPPET(LOAD));
    check_eq("failed_user_load_not_dirty", *pte & D, 0);
    *pte = (u64)page1 | P | W | U | NX;
    invlpg(AREA);
    run(SNIPPET("jmp *%%rdi"));
    check_eq("failed_fetch_not_dirty", *pte & D, 0);
    page1[8] = 0xc3;
    *pte = (u64)page1 | P | W | U;
    invlpg(AREA);
    run(SNIPPET("jmp *%%rdi"));
    check_eq("fetch_sets_accessed", *pte & (A | D), A);
    /* Prefetch and INVLPG never fault. */
    in.rdi = 0x5000000000;
    run(SNIPPET("prefetcht0 (%%rdi)\n invlpg (%%rdi)"));
    check_ran("prefetch_invlpg_absent");
    in.rdi = NON_CANONICAL;
    run(SNIPPET("prefetcht0 (%%rdi)\n invlpg (%%rdi)"));
    check_ran("prefetch_invlpg_non_canonical");
    run_user(c = USER_SNIPPET("invlpg (%%rdi)"));
    check_trap("invlpg_user", c, GP, 0, 0);
    /* A RMW of a page that is readable only: the error says write, and no access is half done. */
    in.rdi = AREA + 8;
    *pte = (u64)page1 | P | U;
    invlpg(AREA);
    run(c = SNIPPET("xadd %%rax, (%%rdi)"));
    check_fault("rmw_read_only", c, 3, 0, AREA + 8);
}

static void large_pages(void)
{
    const void *c;
    /* 2M at AREA + 1G.. and 1G at AREA + 2G */
    u64 two = AREA + 0x40000000, giga = AREA + 0x80000000;
    *entry_of(two, 2) = 0x1000000 | P | W | U | PS;
    *entry_of(giga, 3) = 0 | P | W | U | PS;
    in = (struct regs){.rdi = two + (u64)page1 - 0x1000000 + 16, .rax = 0xabcdef};
    run(SNIPPET(LOAD));
    check_eq("2m_load_accessed", *entry_of(two, 2) & (A | D), A);
    in.rax = 0xabcdef;
    run(SNIPPET(STORE));
    check_eq("2m_store_dirty", *entry_of(two, 2) & (A | D), A | D);
    check_eq("2m_stored", *(u64 *)(page1 + 16), 0xabcdef);
    in.rdi = giga + (u64)page1 + 24;
    in.rax = 0xfedcba;
    run(SNIPPET(STORE));
    if (cpuid_reg(0x80000001, 0, EDX) & 1 << 26) {
        check_ran("1g_store");
        check_eq("1g_stored", *(u64 *)(page1 + 24), 0xfedcba);
        check_eq("1g_dirty", *entry_of(giga, 3) & (A | D), A | D);
        *entry_of(giga, 3) = 0x200000 | P | W | U | PS;
        write_cr3(read_cr3());
        run(c = SNIPPET(LOAD));
        check_fault("1g_reserved_bits", c, 9, 0, in.rdi);
    } else {
        check_eq("1g_unsupported", trap.vector, PF);
    }
    *entry_of(giga, 3) = 0;
    /* From a large page to small ones, with INVLPG of any address in it. */
    u64 *pde = entry_of(two, 2);
    u64 *table = page_alloc();
    table[0] = (u64)page1 | P | W | U;
    table[511] = (u64)page2 | P | W | U;
    *pde = (u64)table | P | W | U;
    invlpg(two + 0x1000);
    *(u64 *)page1 = 0x55;
    *(u64 *)page2 = 0x66;
    check_eq("split_large_page_first", *(volatile u64 *)two, 0x55);
    check_eq("split_large_page_last", *(volatile u64 *)(two + 0x1ff000), 0x66);
}

/* A store across a page boundary writes nothing when either page faults. */
static void crossing(void)
{
    const void *c;
    static const struct { const char *name; u64 f1, f2; u64 error, at; } cases[] = {
        {"cross_store_second_absent", P | W, 0, 2, AREA + 4096},
        {"cross_store_second_read_only", P | W, P, 3, AREA + 4096},
        {"cross_store_first_absent", 0, P | W, 2, AREA + 4093},
        {"cross_store_first_read_only", P, P | W, 3, AREA + 4093},
        {"cross_store_both_absent", 0, 0, 2, AREA + 4093},
    };
    for (u32 i = 0; i < sizeof cases / sizeof *cases; i++) {
        memset(page1, 0x77, 4096);
        memset(page2, 0x77, 4096);
        setup_area(cases[i].f1, cases[i].f2);
        in = (struct regs){.rdi = AREA + 4093, .rax = ~0ull};
        run(c = SNIPPET(STORE));
        check_fault(cases[i].name, c, cases[i].error, 0, cases[i].at);
        check_eq("cross_store_nothing_written", page1[4095] | page2[0], 0x77);
        run(c = SNIPPET("movups %%xmm0, (%%rdi)"));
        check_fault(cases[i].name, c, cases[i].error, 0, cases[i].at);
        check_eq("cross_sse_store_nothing_written", page1[4095] | page2[0], 0x77);
        run(c = SNIPPET("lock addl $1, (%%rdi)"));
        check_fault(cases[i].name, c, cases[i].error, 0, cases[i].at);
        run(c = SNIPPET("notq (%%rdi)"));
        check_fault(cases[i].name, c, cases[i].error, 0, cases[i].at);
        check_eq("cross_rmw_nothing_written", page1[4095] == 0x77 && page2[0] == 0x77, 1);
    }
    setup_area(P | W, 0);
    memset(page1, 0x77, 4096);
    in = (struct regs){.rdi = AREA + 4093};
    run(c = SNIPPET(LOAD));
    check_fault("cross_load_second_absent", c, 0, 0, AREA + 4096);
    run(c = SNIPPET("mov %%rsp, %%rcx\n mov %%rdi, %%rsp\n add $4, %%rsp\n add $2, %%rsp\n pushq $-1\n mov %%rcx, %%rsp"));
    check("push_cross_reported", trap.vector == PF, "vector %d", trap.vector);
    /* Instructions on two pages. */
    u8 code[] = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xc3}; /* mov $imm64, %rax; ret */
    for (int split = 1; split < 10; split++) {
        setup_area(P | W, P | W);
        memcpy((u8 *)AREA + 4096 - split, code, sizeof code);
        *entry_of(AREA + 4096, 1) = 0;
        invlpg(AREA + 4096);
        in.rdi = AREA + 4096 - split;
        run(SNIPPET("jmp *%%rdi"));
        check("fetch_second_page_absent", trap.vector == PF && trap.error == 0x10 && trap.rip == in.rdi && trap.cr2 == AREA + 4096,
              "split %d vector %d error %lx RIP %lx CR2 %lx", split, trap.vector, trap.error, trap.rip, trap.cr2);
        map(AREA + 4096, (u64)page2, P | W);
        run(SNIPPET("jmp *%%rdi"));
        check("fetch_across_pages", trap.vector == -1 && out.rax == 0x0807060504030201, "split %d vector %d RAX %lx", split, trap.vector, out.rax);
    }
    /* An instruction that ends at the boundary does not touch the next page. */
    setup_area(P | W, 0);
    ((u8 *)AREA)[4095] = 0xc3;
    in.rdi = AREA + 4095;
    run(SNIPPET("jmp *%%rdi"));
    check_ran("fetch_ends_at_page_end");
    ((u8 *)AREA)[4095] = 0xf4; /* #GP only in ring 3; here use an undefined opcode */
    ((u8 *)AREA)[4094] = 0x0f;
    ((u8 *)AREA)[4095] = 0x0b;
    in.rdi = AREA + 4094;
    run(SNIPPET("jmp *%%rdi"));
    check("ud_at_page_end", trap.vector == UD && trap.rip == AREA + 4094, "vector %d", trap.vector);
    /* Too long an instruction: #GP(0), even with prefixes only. */
    setup_area(P | W, P | W);
    memset((u8 *)AREA, 0x66, 64);
    ((u8 *)AREA)[14] = 0x90;
    ((u8 *)AREA)[15] = 0xc3;
    in.rdi = AREA;
    run(SNIPPET("jmp *%%rdi"));
    check_ran("fifteen_bytes");
    ((u8 *)AREA)[14] = 0x66;
    ((u8 *)AREA)[15] = 0x90;
    run(SNIPPET("jmp *%%rdi"));
    check("gp_sixteen_bytes", trap.vector == GP && trap.error == 0 && trap.rip == AREA, "vector %d", trap.vector);
    memset((u8 *)AREA + 4096 - 15, 0x66, 15);
    *entry_of(AREA + 4096, 1) = 0;
    invlpg(AREA + 4096);
    in.rdi = AREA + 4096 - 15;
    run(SNIPPET("jmp *%%rdi"));
    check("gp_or_pf_fifteen_prefixes_at_page_end", trap.vector == GP || trap.vector == PF, "vector %d", trap.vector);
    memset((u8 *)AREA + 4096 - 14, 0x66, 14);
    in.rdi = AREA + 4096 - 14;
    run(SNIPPET("jmp *%%rdi"));
    check("pf_fourteen_prefixes_at_page_end", trap.vector == PF && trap.cr2 == AREA + 4096, "vector %d", trap.vector);
}

static void smep_smap(void)
{
    const void *c;
    u32 ebx = cpuid_reg(7, 0, EBX);
    setup_area(P | W | U, P | W);
    page1[0] = 0xc3;
    page2[0] = 0xc3;
    in = (struct regs){.rdi = AREA};
    if (ebx & 1 << 7) {
        write_cr4(read_cr4() | CR4_SMEP);
        run(SNIPPET("jmp *%%rdi"));
        check("smep_fetch", trap.vector == PF && trap.error == 0x11 && trap.rip == AREA, "vector %d error %lx", trap.vector, trap.error);
        wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ull);
        run(SNIPPET("jmp *%%rdi"));
        check("smep_fetch_without_nxe_has_id_bit", trap.vector == PF && trap.error == 0x11, "vector %d error %lx", trap.vector, trap.error);
        wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
        in.rdi = AREA + 4096;
        run(SNIPPET("jmp *%%rdi"));
        check_ran("smep_supervisor_page");
        in.rdi = AREA;
        run(SNIPPET("mov (%%rdi), %%rax"));
        check_ran("smep_data");
        run_user(USER_SNIPPET("call *%%rdi"));
        check_ran("smep_user_fetch");
        write_cr4(read_cr4() & ~(u64)CR4_SMEP);
        run(SNIPPET("jmp *%%rdi"));
        check_ran("smep_off");
    }
    if (ebx & 1 << 20) {
        run(c = SNIPPET("stac\n clac"));
        check_ran("stac_clac_ring0_without_smap");
        write_cr4(read_cr4() | CR4_SMAP);
        run(c = SNIPPET("clac\n" LOAD));
        check_fault("smap_load", c, 1, 3, AREA);
        run(c = SNIPPET("clac\n" STORE));
        check_fault("smap_store", c, 3, 3, AREA);
        run(c = SNIPPET("stac\n" LOAD "\n" STORE "\n clac"));
        check_ran("smap_ac");
        run(c = SNIPPET("stac\n pushfq\n pop %%rax\n clac\n pushfq\n pop %%rcx"));
        check("stac_sets_ac", (out.rax & FL_AC) && !(out.rcx & FL_AC), "flags %lx %lx", out.rax, out.rcx);
        page1[0] = 0xc3;
        run(c = SNIPPET("clac\n call *%%rdi"));
        check_ran("smap_is_not_for_fetches");
        run_user(c = USER_SNIPPET(LOAD));
        check_ran("smap_user_access");
        run_user(c = USER_SNIPPET("stac"));
        check_trap("stac_user", c, UD, 0, 0);
        run_user(c = USER_SNIPPET("clac"));
        check_trap("clac_user", c, UD, 0, 0);
        write_cr0(read_cr0() & ~(u64)CR0_WP);
        run(c = SNIPPET("clac\n" STORE));
        check_fault("smap_store_without_wp", c, 3, 3, AREA);
        write_cr0(read_cr0() | CR0_WP);
        /* Implicit supervisor accesses fault whatever AC is: the GDT on a user page. */
        u64 base = AREA + 4096 - FREE;
        struct __attribute__((packed)) { u16 limit; u64 base; } user_gdt = {sizeof gdt - 1, base}, real_gdt = {sizeof gdt - 1, (u64)gdt};
        setup_area(P | W, P | W);
        gdt[FREE / 8] = gdt[2];
        memcpy((void *)base, gdt, sizeof gdt);
        setup_area(P | W, P | W | U);
        asm volatile("lgdt %0" ::"m"(user_gdt));
        run(c = SNIPPET("stac\n mov $0x80, %%eax\n mov %%eax, %%fs"));
        asm volatile("lgdt %0" ::"m"(real_gdt));
        check_fault("smap_implicit_descriptor", c, 1, 8, AREA + 4096);
        /* From user mode, too: the processor reads a descriptor for the program as supervisor. */
        write_cr4(read_cr4() & ~(u64)CR4_SMAP);
        setup_area(P | W, P | W);
        asm volatile("lgdt %0" ::"m"(user_gdt));
        run_user(c = USER_SNIPPET("mov $0x23, %%eax\n mov %%eax, %%fs"));
        asm volatile("lgdt %0" ::"m"(real_gdt));
        check_ran("implicit_supervisor_descriptor_load");
        asm volatile("mov %0, %%fs" ::"r"(KDATA));
    }
}

static void tlb(void)
{
    u32 r[4];
    const void *c;
    cpuid(1, 0, r);
    setup_area(P | W, P | W);
    volatile u64 *area = (u64 *)AREA;
    *(u64 *)page1 = 1;
    *(u64 *)page2 = 2;
    check_eq("tlb_before", *area, 1);
    *entry_of(AREA, 1) = (u64)page2 | P | W;
    invlpg(AREA + 0x800);
    check_eq("invlpg", *area, 2);
    *entry_of(AREA, 1) = (u64)page1 | P | W;
    write_cr3(read_cr3());
    check_eq("cr3_write", *area, 1);
    /* A not-present entry is never cached: no invalidation is needed to make it present. */
    *entry_of(AREA, 1) = 0;
    invlpg(AREA);
    in = (struct regs){.rdi = AREA};
    run(SNIPPET(LOAD));
    *entry_of(AREA, 1) = (u64)page1 | P | W;
    run(SNIPPET(LOAD));
    check_ran("absent_is_not_cached");
    /* After a fault for want of permission the entry is fetched anew. */
    *entry_of(AREA, 1) = (u64)page1 | P;
    invlpg(AREA);
    run(SNIPPET(LOAD));
    run(SNIPPET(STORE));
    check_eq("read_only_faults", trap.vector, PF);
    *entry_of(AREA, 1) = (u64)page1 | P | W;
    run(SNIPPET(STORE));
    check_ran("page_fault_invalidates");
    /* Clearing D needs an invalidation; then the next store sets it again. */
    *entry_of(AREA, 1) &= ~(u64)D;
    invlpg(AREA);
    run(SNIPPET(STORE));
    check_eq("dirty_again", *entry_of(AREA, 1) & D, D);

    write_cr4(read_cr4() | CR4_PGE);
    *(u64 *)page1 = 1;
    *entry_of(AREA, 1) = (u64)page1 | P | W | G;
    invlpg(AREA);
    (void)*area;
    *entry_of(AREA, 1) = (u64)page2 | P | W | G;
    write_cr4(read_cr4() & ~(u64)CR4_PGE);
    check_eq("cr4_pge_toggle_flushes_global", *area, 2);
    write_cr4(read_cr4() | CR4_PGE);
    *entry_of(AREA, 1) = (u64)page1 | P | W | G;
    invlpg(AREA);
    check_eq("invlpg_global", *area, 1);

    in = (struct regs){.rax = read_cr3() | 0x5};
    if (r[2] & 1 << 17) {
        run(c = SNIPPET("mov %%cr3, %%rcx\n or $1, %%rcx\n mov %%rcx, %%cr3\n mov %%cr4, %%rax\n bts $17, %%rax\n mov %%rax, %%cr4"));
        check("pcide_needs_pcid_0", trap.vector == GP && trap.error == 0, "vector %d", trap.vector);
        write_cr3((u64)pml4);
        write_cr4(read_cr4() | CR4_PCIDE);
        /* Each PCID sees its own tables; bit 63 keeps nothing that a new table contradicts elsewhere. */
        u64 *other = page_alloc();
        memcpy(other, pml4, 4096);
        *entry_of(AREA, 1) = (u64)page1 | P | W;
        write_cr3((u64)pml4);
        invlpg(AREA);
        (void)*area;
        other[1] = 0;
        write_cr3((u64)other | 5);
        *entry_of(AREA, 1) = (u64)page2 | P | W;
        *entry_of(AREA + 4096, 1) = (u64)page2 | P | W;
        check_eq("pcid_5", *area, 2);
        write_cr3((u64)pml4 | 1ull << 63);
        check_eq("pcid_0_again", *area, 1);
        check_eq("cr3_reads_without_bit_63", read_cr3(), (u64)pml4);
        write_cr3((u64)other | 5 | 1ull << 63);
        check_eq("pcid_5_again", *area, 2);
        check_eq("cr3_reads_pcid", read_cr3(), (u64)other | 5);
        struct { u64 pcid, gva; } descriptor = {5, AREA};
        if (cpuid_reg(7, 0, EBX) & 1 << 10) {
            *entry_of(AREA, 1) = (u64)page1 | P | W;
            in = (struct regs){.rdi = (u64)&descriptor, .rax = 0};
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_eq("invpcid_address", *area, 1);
            *entry_of(AREA, 1) = (u64)page2 | P | W;
            in.rax = 1;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_eq("invpcid_context", *area, 2);
            *entry_of(AREA, 1) = (u64)page1 | P | W | G;
            in.rax = 2;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_eq("invpcid_all_with_global", *area, 1);
            *entry_of(AREA, 1) = (u64)page2 | P | W;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            *entry_of(AREA, 1) = (u64)page1 | P | W;
            in.rax = 3;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_eq("invpcid_all_but_global", *area, 1);
            in.rax = 4;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_trap("invpcid_type_4", c, GP, 0, 0);
            descriptor.pcid = 0x1000;
            in.rax = 1;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_trap("invpcid_reserved_bits", c, GP, 0, 0);
            descriptor.pcid = 5;
            descriptor.gva = NON_CANONICAL;
            in.rax = 0;
            run(c = SNIPPET("invpcid (%%rdi), %%rax"));
            check_trap("invpcid_non_canonical", c, GP, 0, 0);
            run_user(c = USER_SNIPPET("invpcid (%%rdi), %%rax"));
            check_trap("invpcid_user", c, GP, 0, 0);
        }
        write_cr3((u64)pml4);
        write_cr4(read_cr4() & ~(u64)CR4_PCIDE);
        /* With PCIDE clear, bit 63 of CR3 is reserved. */
        run(c = SNIPPET("mov %%cr3, %%rax\n bts $63, %%rax\n mov %%rax, %%cr3"));
        check("cr3_bit_63_without_pcide", trap.vector == GP, "vector %d", trap.vector);
    }
    write_cr4(read_cr4() & ~(u64)CR4_PGE);
}

void kernel_main(void)
{
    page1 = page_alloc();
    page2 = page_alloc();
    permissions();
    reserved();
    accessed_dirty();
    large_pages();
    crossing();
    smep_smap();
    tlb();
}
