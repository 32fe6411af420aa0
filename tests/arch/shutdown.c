/* A triple fault: the last line is printed before it. */
#include "kernel64.h"

void kernel_main(void)
{
    static struct __attribute__((packed)) { u16 limit; u64 base; } none;
    print("SHUTDOWN\n");
    asm volatile("lidt %0\n ud2" ::"m"(none));
}
