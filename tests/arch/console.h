/* Test results on COM1, and the end through the debug-exit port. Shared by 64- and 32-bit kernels. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned long uptr;

static inline void outb(u16 port, u8 value) { asm volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 inb(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline void outl(u16 port, u32 value) { asm volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }

/* %s, %d, %x (32 bits), %lx (64 bits). */
void print(const char *format, ...);
/* One result line: PASS, or FAIL with the formatted detail. */
void check(const char *name, int ok, const char *format, ...);
/* Compares two numbers. */
void check_eq(const char *name, u64 got, u64 want);
/* Prints DONE and leaves through the debug-exit port. */
__attribute__((noreturn)) void done(void);
/* Prints FAIL and leaves. */
__attribute__((noreturn)) void fatal(const char *format, ...);
void *memset(void *to, int byte, uptr size);
void *memcpy(void *to, const void *from, uptr size);
int memcmp(const void *a, const void *b, uptr size);

static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
static inline u32 cpuid_reg(u32 leaf, u32 sub, int reg)
{
    u32 r[4];
    cpuid(leaf, sub, r);
    return r[reg];
}
enum { EAX, EBX, ECX, EDX };
/* AMD processors differ in documented places. */
static inline int is_amd(void) { return cpuid_reg(0, 0, EBX) == 0x68747541; }
/* QEMU's translator lacks some checks, and does not survive a few. */
static inline int is_tcg(void) { return cpuid_reg(1, 0, ECX) >> 31 && cpuid_reg(0x40000000, 0, EBX) == 0x54474354; }
