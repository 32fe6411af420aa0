/* A guest that runs wild: jumps into random bytes, and after each exception into others, for ever.
   Ports that end the machine are reached soon enough without help; HLT is not among the bytes. */
#include "entry.h"

#define CODE ((u8 *)0x200000)
#define CODE_SIZE 0x10000u

static u64 gdt[4] __attribute__((aligned(16))) = {0, 0x00cf9b000000ffffull, 0x00cf93000000ffffull, 0};
static u64 idt[256] __attribute__((aligned(16)));
static struct { u16 limit; u32 base; } __attribute__((packed)) table;

static void fill(void) {
    for (u32 i = 0; i < CODE_SIZE; i++) {
        u8 byte = dice();
        CODE[i] = byte == 0xf4 ? 0x90 : byte;
    }
}

/* Where every exception and interrupt comes to, on a fresh stack. */
void again(void) {
    static u32 count;
    __asm__ volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%ss" ::"r"(0x10));
    if (++count % 64 == 0) fill();
    if (count % 1024 == 0) out8(0x3f8, '.');
    u32 target = (u32)CODE + dice() % (CODE_SIZE - 64);
    u32 esp = 0x380000 + (dice() & 0xfff0);
    __asm__ volatile("mov %0, %%esp; push $2; popf; jmp *%1" ::"r"(esp), "r"(target));
}

__asm__("entry: cld\n"
        "mov $0x10, %ax\n"
        "mov %ax, %ss\n"
        "mov %ax, %ds\n"
        "mov $stack_end, %esp\n"
        "call again\n");
extern u8 entry[];

void kernel_main(const u32 *multiboot) {
    seed_dice(multiboot);
    u32 at = (u32)entry;
    for (int i = 0; i < 256; i++) idt[i] = (u64)(at >> 16) << 48 | 0x8e0000080000ull | (at & 0xffff);
    table.limit = sizeof gdt - 1;
    table.base = (u32)gdt;
    __asm__ volatile("lgdt %0; ljmp $8, $1f; 1:" ::"m"(table));
    table.limit = sizeof idt - 1;
    table.base = (u32)idt;
    __asm__ volatile("lidt %0" ::"m"(table));
    print("WILD\n");
    fill();
    again();
}
