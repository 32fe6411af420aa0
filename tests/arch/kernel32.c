/* See kernel32.h. */
#include "kernel32.h"

struct regs in, out;
volatile struct trap trap;
handler *handlers[256];
u32 run_esp, run_code, run_armed, user_eflags = 2, user_esp;
static u8 user_stack[4096] __attribute__((aligned(16)));
u32 tss[26];
u64 idt[256] __attribute__((aligned(16)));
u64 gdt[32] __attribute__((aligned(16))) = {
    0,
    0x00cf9b000000ffff, /* 08 ring 0 code */
    0x00cf93000000ffff, /* 10 ring 0 data */
    0x00cffb000000ffff, /* 18 ring 3 code */
    0x00cff3000000ffff, /* 20 ring 3 data */
    0,                  /* 28 TSS */
    0,
    0x00009b000000ffff, /* 38 16-bit code */
    0x000093000000ffff, /* 40 16-bit data */
};
struct __attribute__((packed)) pointer { u16 limit; u32 base; };
struct pointer gdt_pointer = {sizeof gdt - 1, (u32)gdt};
static struct pointer idt_pointer = {sizeof idt - 1, (u32)idt};
extern char stub_base[];

void set_gate(int vector, u32 target, int type, int dpl)
{
    idt[vector] = (target & 0xffff) | KCODE << 16 | (u64)(0x80 | dpl << 5 | type) << 40 | (u64)(target >> 16) << 48;
}
void reset_gate(int vector)
{
    set_gate(vector, (u32)stub_base + vector * 16, 0xe, vector == 3 || vector == 4 || vector == 0x81 ? 3 : 0);
}

void setup(void)
{
    for (int vector = 0; vector < 256; vector++)
        reset_gate(vector);
    asm volatile("lidt %0" ::"m"(idt_pointer));
    u32 base = (u32)tss;
    gdt[5] = 103 | (u64)(base & 0xffffff) << 16 | 0x89ull << 40 | (u64)(base >> 24) << 56;
    tss[1] = (u32)esp0_stack_end;
    tss[2] = KDATA;
    tss[25] = 104 << 16;
    asm volatile("ltr %w0" ::"r"(TSS));
    user_esp = (u32)user_stack + sizeof user_stack - 64;
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
}

int trap_entry(struct frame *f)
{
    trap.cr2 = read_cr2();
    asm volatile("mov %%dr6, %0" : "=r"(trap.dr6));
    if (handlers[f->vector] && !handlers[f->vector](f))
        return 0;
    if (!run_armed)
        fatal("exception %d error %x at %x, CR2 %x", f->vector, f->error, f->eip, trap.cr2);
    run_armed = 0;
    out = (struct regs){f->eax, f->ecx, f->edx, f->ebx, f->ebp, f->esi, f->edi};
    if (f->vector == 0x81)
        return 1;
    trap.vector = f->vector;
    trap.error = f->error;
    trap.eip = f->eip;
    trap.cs = f->cs;
    trap.eflags = f->eflags;
    trap.esp = f->esp;
    trap.ss = f->ss;
    trap.es = f->es;
    trap.ds = f->ds;
    trap.fs = f->fs;
    trap.gs = f->gs;
    trap.frame = f;
    return 1;
}

void check_trap(const char *name, const void *code, int vector, u32 error, u32 offset)
{
    check(name, trap.vector == vector && trap.error == error && trap.eip == (u32)code + offset,
          "vector %d error %x EIP +%x CR2 %x; should be %d, %x, +%x", trap.vector, trap.error,
          trap.eip - (u32)code, trap.cr2, vector, error, offset);
}
void check_fault(const char *name, const void *code, u32 error, u32 offset, u32 cr2)
{
    check(name, trap.vector == PF && trap.error == error && trap.eip == (u32)code + offset && trap.cr2 == cr2,
          "vector %d error %x EIP +%x CR2 %x; should be 14, %x, +%x, %x", trap.vector, trap.error,
          trap.eip - (u32)code, trap.cr2, error, offset, cr2);
}
void check_ran(const char *name)
{
    check(name, trap.vector == -1, "vector %d error %x EIP %x CR2 %x", trap.vector, trap.error, trap.eip, trap.cr2);
}
