/* Local APIC, I/O APIC, PIC and PIT as the processor sees them. SDM volume 3, chapter 10 (11). */
#include "kernel64.h"

static volatile u32 seen[256];
static volatile u32 order[16], ordered;
static volatile u64 nmi_nested, last_rip;
static int x2;
static int hold_eoi;

static u32 apic_read(u32 reg)
{
    return x2 ? (u32)rdmsr(0x800 + (reg >> 4)) : *(volatile u32 *)(0xfee00000ull + reg);
}
static void apic_write(u32 reg, u32 value)
{
    if (x2)
        wrmsr(0x800 + (reg >> 4), value);
    else
        *(volatile u32 *)(0xfee00000ull + reg) = value;
}
enum { ID = 0x20, VERSION = 0x30, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, SVR = 0xf0, ISR = 0x100, TMR = 0x180,
       IRR = 0x200, ESR = 0x280, ICR = 0x300, LVT_TIMER = 0x320, LVT_LINT0 = 0x350, LVT_ERROR = 0x370, INITIAL = 0x380,
       CURRENT = 0x390, DIVIDE = 0x3e0 };

static int bit(u32 base, int vector) { return apic_read(base + (vector / 32) * 16) >> (vector % 32) & 1; }

static int note(struct frame *frame)
{
    u32 vector = frame->vector;
    seen[vector]++;
    if (ordered < 16)
        order[ordered++] = vector;
    last_rip = frame->rip;
    if (vector != 0xff && !hold_eoi)
        apic_write(EOI, 0);
    return 0;
}

static void send(u32 command)
{
    if (x2) {
        wrmsr(0x830, (command & 0xc0000) ? command : (command | (u64)apic_read(ID) << 32));
        return;
    }
    apic_write(ICR + 16, apic_read(ID) & 0xff000000);
    apic_write(ICR, command);
    while (apic_read(ICR) & 0x1000)
        ;
}
#define SELF 0x44000

static void open_window(void) { asm volatile("sti\n nop\n nop\n nop\n nop\n cli"); }
static void clear_seen(void)
{
    memset((void *)seen, 0, sizeof seen);
    ordered = 0;
}

/* Some milliseconds. */
static void delay(void)
{
    for (u64 start = rdtsc(); rdtsc() - start < 10000000;)
        asm volatile("pause");
}

/* Waits up to some number of turns for a count. */
static int wait_for(int vector, u32 count)
{
    for (u64 i = 0; i < 3000000 && seen[vector] < count; i++)
        asm volatile("sti\n pause\n cli");
    return seen[vector] >= count;
}

static int nest_nmi(struct frame *frame)
{
    (void)frame;
    seen[2]++;
    if (seen[2] == 1) {
        send(0x4400);
        delay();
        nmi_nested = seen[2];
    }
    return 0;
}

static void interrupts(const char *mode)
{
    print("# %s\n", mode);
    check("version", (apic_read(VERSION) & 0xf0) == 0x10 && (apic_read(VERSION) >> 16 & 0xff) >= 3, "%x", apic_read(VERSION));
    clear_seen();
    send(SELF | 0x50);
    check("self_ipi_pending", bit(IRR, 0x50) && seen[0x50] == 0, "");
    open_window();
    check("self_ipi_delivered", seen[0x50] == 1 && !bit(IRR, 0x50) && !bit(ISR, 0x50), "%d", seen[0x50]);
    send(0x4051);
    open_window();
    check_eq("ipi_by_id", seen[0x51], 1);
    if (x2)
        wrmsr(0x83f, 0x52);
    else
        send(SELF | 0x52);
    open_window();
    check_eq("self_ipi_register", seen[0x52], 1);
    /* Two of one vector merge. */
    clear_seen();
    send(SELF | 0x53);
    send(SELF | 0x53);
    open_window();
    check_eq("same_vector_merges", seen[0x53], 1);
    /* Highest first. */
    clear_seen();
    send(SELF | 0x31);
    send(SELF | 0x91);
    send(SELF | 0x61);
    open_window();
    check("priority_order", ordered == 3 && order[0] == 0x91 && order[1] == 0x61 && order[2] == 0x31, "%x %x %x", order[0], order[1], order[2]);
    /* TPR holds off its own class and below. */
    clear_seen();
    apic_write(TPR, 0x60);
    check_eq("tpr_is_cr8", read_cr8(), 6);
    check_eq("ppr_follows_tpr", apic_read(PPR), 0x60);
    send(SELF | 0x6f);
    send(SELF | 0x70);
    open_window();
    check("tpr_masks_class", ordered == 1 && order[0] == 0x70, "%d", ordered);
    write_cr8(5);
    check_eq("cr8_is_tpr", apic_read(TPR), 0x50);
    open_window();
    check_eq("tpr_lowered", seen[0x6f], 1);
    write_cr8(0);
    /* In service holds off until EOI. */
    clear_seen();
    hold_eoi = 1;
    send(SELF | 0x80);
    open_window();
    check("in_service", bit(ISR, 0x80) && apic_read(PPR) == 0x80, "PPR %x", apic_read(PPR));
    send(SELF | 0x8f);
    open_window();
    check_eq("same_class_waits", seen[0x8f], 0);
    send(SELF | 0x90);
    open_window();
    check_eq("higher_class_nests", seen[0x90], 1);
    check_eq("ppr_is_highest", apic_read(PPR), 0x90);
    apic_write(EOI, 0);
    check("eoi_ends_highest", !bit(ISR, 0x90) && bit(ISR, 0x80), "");
    hold_eoi = 0;
    apic_write(EOI, 0);
    open_window();
    check_eq("waiting_after_eoi", seen[0x8f], 1);
    check_eq("ppr_idle", apic_read(PPR), 0);
    /* An illegal vector is an error. */
    apic_write(ESR, 0);
    if (!is_tcg()) {
        send(SELF | 0x05);
        apic_write(ESR, 0);
        check("esr_illegal_vector", (apic_read(ESR) & 0x60) != 0, "ESR %x", apic_read(ESR));
    }
    apic_write(ESR, 0);
    apic_write(ESR, 0);
    check_eq("esr_clears", apic_read(ESR), 0);
    /* NMI by IPI: blocked until IRET, one pending. */
    clear_seen();
    handlers[2] = nest_nmi;
    send(0x4400);
    delay();
    check_eq("nmi_twice", seen[2], 2);
    check_eq("nmi_blocked_until_iret", nmi_nested, 1);
    /* Timer. */
    clear_seen();
    apic_write(DIVIDE, 0xb);
    apic_write(LVT_TIMER, 0x40);
    apic_write(INITIAL, 100000);
    check("timer_counts", apic_read(CURRENT) <= 100000, "%x", apic_read(CURRENT));
    check("timer_one_shot", wait_for(0x40, 1), "%d", seen[0x40]);
    check_eq("timer_one_shot_stops", apic_read(CURRENT), 0);
    apic_write(LVT_TIMER, 0x20041);
    apic_write(INITIAL, 20000);
    check("timer_periodic", wait_for(0x41, 4), "%d", seen[0x41]);
    apic_write(INITIAL, 0);
    open_window();
    u32 then = seen[0x41];
    delay();
    open_window();
    check_eq("timer_stopped", seen[0x41], then);
    apic_write(LVT_TIMER, 0x10042);
    apic_write(INITIAL, 1000);
    delay();
    open_window();
    check_eq("timer_masked", seen[0x42], 0);
    apic_write(INITIAL, 0);
    if (cpuid_reg(1, 0, ECX) & 1 << 24) {
        apic_write(LVT_TIMER, 0x40043);
        wrmsr(0x6e0, rdtsc() + 1000000);
        check("deadline_armed", rdmsr(0x6e0) != 0, "");
        check("tsc_deadline", wait_for(0x43, 1), "");
        check_eq("deadline_reads_zero_after", rdmsr(0x6e0), 0);
        wrmsr(0x6e0, 1);
        open_window();
        check("deadline_in_the_past", wait_for(0x43, 2), "");
        wrmsr(0x6e0, rdtsc() + 1000000000000);
        wrmsr(0x6e0, 0);
        check_eq("deadline_disarmed", rdmsr(0x6e0), 0);
        /* HLT sleeps until the timer. */
        u64 start = rdtsc();
        wrmsr(0x6e0, start + 50000000);
        asm volatile("sti\n hlt\n cli");
        check("hlt_until_deadline", seen[0x43] == 3 && rdtsc() >= start + 50000000, "%d", seen[0x43]);
        apic_write(LVT_TIMER, 0x10000);
    }
}

static void io_apic_write(u32 reg, u32 value)
{
    *(volatile u32 *)0xfec00000 = reg;
    *(volatile u32 *)0xfec00010 = value;
}
static u32 io_apic_read(u32 reg)
{
    *(volatile u32 *)0xfec00000 = reg;
    return *(volatile u32 *)0xfec00010;
}

static void pit(u16 count, int mode)
{
    outb(0x43, 0x30 | mode << 1);
    outb(0x40, count);
    outb(0x40, count >> 8);
}

static int note_pic(struct frame *frame)
{
    seen[frame->vector]++;
    outb(0x20, 0x20);
    return 0;
}

static void legacy(void)
{
    clear_seen();
    u32 entries = (io_apic_read(1) >> 16 & 0xff) + 1;
    check_eq("io_apic_entries", entries, 24);
    io_apic_write(0x14, 0x10060);
    io_apic_write(0x15, apic_read(ID) & 0xff000000);
    check_eq("io_apic_entry_readback", io_apic_read(0x14) & 0x1ffff, 0x10060);
    pit(1000, 0);
    io_apic_write(0x14, 0x60); /* Unmasked, edge: the PIT's output is low until its end. */
    pit(2000, 0);
    check("pit_one_shot_through_pin_2", wait_for(0x60, 1), "");
    u32 then = seen[0x60];
    delay();
    open_window();
    check_eq("pit_one_shot_once", seen[0x60], then);
    pit(1193, 2);
    check("pit_periodic", wait_for(0x60, then + 4), "%d", seen[0x60]);
    io_apic_write(0x14, 0x10060);
    open_window();
    then = seen[0x60];
    delay();
    open_window();
    check_eq("io_apic_masked", seen[0x60], then);
    /* HLT with the PIT. */
    pit(1193, 2);
    io_apic_write(0x14, 0x60);
    then = seen[0x60];
    asm volatile("sti\n hlt\n cli");
    check("hlt_until_pit", seen[0x60] > then, "");
    io_apic_write(0x14, 0x10060);
    open_window();
    /* 8259: vectors 0x70.., through LINT0 as ExtINT. */
    handlers[0xb0] = handlers[0xb7] = note_pic;
    outb(0x20, 0x11);
    outb(0x21, 0xb0);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0xa0, 0x11);
    outb(0xa1, 0xb8);
    outb(0xa1, 2);
    outb(0xa1, 1);
    outb(0xa1, 0xff);
    apic_write(LVT_LINT0, 0x700);
    outb(0x21, 0xfe);
    check_eq("pic_mask_readback", inb(0x21), 0xfe);
    pit(1193, 2);
    check("pic_pit", wait_for(0xb0, 3), "%d", seen[0xb0]);
    outb(0x21, 0xff);
    open_window();
    then = seen[0xb0];
    delay();
    open_window();
    check_eq("pic_masked", seen[0xb0], then);
    outb(0x20, 0x0a);
    check_eq("pic_irr_shows_masked", inb(0x20) & 1, 1);
    apic_write(LVT_LINT0, 0x10700);
    pit(0, 0);
}

static void bases(void)
{
    const void *c;
    u64 base = rdmsr(0x1b);
    check("apic_base_reset", (base & ~0x100ull) == 0xfee00800 && base & 0x100, "%lx", base);
    in = (struct regs){};
    wrmsr(0x1b, (base & ~0xfffff000ull) | 0xfed00000);
    check_eq("apic_relocated", *(volatile u32 *)0xfed00030 & 0xf0, 0x10);
    wrmsr(0x1b, base);
    check_eq("apic_moved_back", *(volatile u32 *)0xfee00030 & 0xf0, 0x10);
    wrmsr(0x1b, base & ~0x800ull);
    check_eq("apic_disabled_cpuid", cpuid_reg(1, 0, EDX) >> 9 & 1, 0);
    check_eq("apic_x2_from_disabled", try_wrmsr(0x1b, base | 0x400) == GP || (rdmsr(0x1b) & 0x400), 1);
    wrmsr(0x1b, base & ~0x800ull);
    wrmsr(0x1b, base);
    check_eq("apic_enabled_cpuid", cpuid_reg(1, 0, EDX) >> 9 & 1, 1);
    apic_write(SVR, 0x1ff);
    run(c = SNIPPET("mov $0x802, %%ecx\n rdmsr"));
    check_trap("x2apic_msr_in_xapic_mode", c, GP, 0, 5);
}

static void x2apic(void)
{
    const void *c;
    u64 base = rdmsr(0x1b);
    in = (struct regs){};
    wrmsr(0x1b, base | 0x400);
    x2 = 1;
    apic_write(SVR, 0x1ff);
    interrupts("x2APIC");
    check_eq("x2apic_to_xapic", try_wrmsr(0x1b, base), GP);
    check_eq("x2apic_eoi_nonzero", try_wrmsr(0x80b, 1), GP);
    check_eq("x2apic_id_read_only", try_wrmsr(0x802, 1), GP);
    check_eq("x2apic_reserved_register", try_rdmsr(0x80e, 0), GP);
    check_eq("x2apic_icr_high_gone", try_rdmsr(0x831, 0), GP);
    check_eq("x2apic_self_ipi_write_only", try_rdmsr(0x83f, 0), GP);
    check_eq("x2apic_tpr_reserved", try_wrmsr(0x808, 0x100), GP);
    check_eq("x2apic_ldr", apic_read(LDR), (apic_read(ID) >> 4) << 16 | 1 << (apic_read(ID) & 15));
    run_user(c = USER_SNIPPET("mov $0x802, %%ecx\n rdmsr"));
    check_trap("x2apic_user", c, GP, 0, 5);
    wrmsr(0x1b, base & ~0xc00ull);
    wrmsr(0x1b, base);
    x2 = 0;
    check_eq("x2apic_reset_by_disable", apic_read(SVR), 0xff);
}

void kernel_main(void)
{
    for (int vector = 0x30; vector < 0x100; vector++)
        if (vector != 0x81)
            handlers[vector] = note;
    bases();
    interrupts("xAPIC");
    legacy();
    if (cpuid_reg(1, 0, ECX) & 1 << 21)
        x2apic();
}
