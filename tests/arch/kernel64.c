/* See kernel64.h. */
#include "kernel64.h"

struct regs in, out;
volatile struct trap trap;
handler *handlers[256];
u64 run_rsp, run_code;
u32 run_armed;
u64 user_rsp, user_rflags = 2;
u32 user_code = UCODE, user_data = UDATA;

u64 gdt[64] __attribute__((aligned(16))) = {
    0,
    0x00af9b000000ffff, /* 08 ring 0 code, 64-bit */
    0x00cf93000000ffff, /* 10 ring 0 data */
    0x00cffb000000ffff, /* 18 ring 3 code, 32-bit */
    0x00cff3000000ffff, /* 20 ring 3 data */
    0x00affb000000ffff, /* 28 ring 3 code, 64-bit */
    0, 0,               /* 30 TSS */
    0x00cf9b000000ffff, /* 40 ring 0 code, 32-bit */
    0x000093000000ffff, /* 48 ring 0 data, 16-bit */
};
struct __attribute__((packed)) pointer {
    u16 limit;
    u64 base;
};
struct pointer gdt_pointer = {sizeof gdt - 1, (u64)gdt};
static struct pointer idt_pointer;
u64 idt[512] __attribute__((aligned(16)));
u32 tss[26 + 2048 / 4 + 6];
extern char stub_base[], run_return[];
static u8 user_stack[8192] __attribute__((aligned(16)));
static u8 *next_page = (u8 *)0x1000000;

void set_gate(int vector, u64 target, int type, int dpl, int ist)
{
    idt[vector * 2] = (target & 0xffff) | KCODE << 16 | (u64)ist << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
                      (target >> 16 & 0xffff) << 48;
    idt[vector * 2 + 1] = target >> 32;
}

static void stub_gate(int vector, int type, int dpl, int ist)
{
    set_gate(vector, (u64)stub_base + vector * 16, type, dpl, ist);
}

void reset_gate(int vector)
{
    stub_gate(vector, 0xe, vector == 3 || vector == 4 || vector == 0x81 ? 3 : 0, 0);
}

void set_ist(int index, u64 top)
{
    tss[9 + (index - 1) * 2] = top;
    tss[10 + (index - 1) * 2] = top >> 32;
}

void setup(void)
{
    for (int vector = 0; vector < 256; vector++)
        reset_gate(vector);
    idt_pointer = (struct pointer){sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" ::"m"(idt_pointer));
    u64 base = (u64)tss;
    gdt[6] = (103) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[7] = base >> 32;
    tss[1] = (u32)(u64)rsp0_stack_end;
    tss[25] = 104 << 16;
    asm volatile("ltr %w0" ::"r"(TSS));
    user_rsp = USER((u64)user_stack + sizeof user_stack - 64);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

int trap_entry(struct frame *frame)
{
    u64 cr2 = read_cr2(), dr6 = read_dr6();
    trap.count++;
    if (frame->vector == 0x81 && run_armed) {
        out = *(struct regs *)frame;
        out.rflags = frame->rflags;
        return 1;
    }
    handler *handle = handlers[frame->vector];
    if (handle) {
        trap.cr2 = cr2;
        trap.dr6 = dr6;
        int ended = handle(frame);
        if (!ended)
            return 0;
    } else if (!run_armed) {
        fatal("exception %d error %lx at %lx, CR2 %lx", (u32)frame->vector, frame->error, frame->rip, cr2);
    }
    run_armed = 0;
    out = *(struct regs *)frame;
    out.rflags = frame->rflags;
    trap.vector = frame->vector;
    trap.error = frame->error;
    trap.rip = frame->rip;
    trap.cs = frame->cs;
    trap.rflags = frame->rflags;
    trap.rsp = frame->rsp;
    trap.ss = frame->ss;
    trap.cr2 = cr2;
    trap.dr6 = dr6;
    trap.frame = frame;
    return 1;
}

static int trap_ok(const char *name, const void *code, int vector, u64 error, u64 offset)
{
    if (trap.vector == vector && trap.error == error && trap.rip == (u64)code + offset)
        return 1;
    check(name, 0, "vector %d error %lx RIP +%lx CR2 %lx; should be %d, %lx, +%lx", trap.vector, trap.error,
          trap.rip - (u64)code, trap.cr2, vector, error, offset);
    return 0;
}

void check_trap(const char *name, const void *code, int vector, u64 error, u64 offset)
{
    if (trap_ok(name, code, vector, error, offset))
        check(name, 1, "");
}

void check_fault(const char *name, const void *code, u64 error, u64 offset, u64 cr2)
{
    if (trap_ok(name, code, PF, error, offset))
        check(name, trap.cr2 == cr2, "CR2 is %lx, should be %lx", trap.cr2, cr2);
}

void check_ran(const char *name)
{
    check(name, trap.vector == -1, "vector %d error %lx RIP %lx CR2 %lx", trap.vector, trap.error, trap.rip, trap.cr2);
}

void *page_alloc(void)
{
    u8 *page = next_page;
    next_page += 4096;
    return memset(page, 0, 4096);
}

u64 *entry_of(u64 gva, int level)
{
    u64 *table = (u64 *)(read_cr3() & ~0xfffull);
    for (int at = 4;; at--) {
        u64 *entry = &table[gva >> (3 + 9 * at) & 511];
        if (at == level)
            return entry;
        if (!(*entry & P))
            *entry = (u64)page_alloc() | P | W | U;
        table = (u64 *)(*entry & 0xffffffffff000);
    }
}

u64 *map(u64 gva, u64 gpa, u64 flags)
{
    u64 *entry = entry_of(gva, 1);
    *entry = gpa | flags;
    invlpg(gva);
    return entry;
}

int try_rdmsr(u32 msr, u64 *value)
{
    in.rcx = msr;
    int vector = run(SNIPPET("rdmsr"));
    if (value)
        *value = (u32)out.rax | out.rdx << 32;
    return vector;
}

int try_wrmsr(u32 msr, u64 value)
{
    in.rcx = msr;
    in.rax = (u32)value;
    in.rdx = value >> 32;
    return run(SNIPPET("wrmsr"));
}
