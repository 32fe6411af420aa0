/* What a 32-bit test kernel stands on: as kernel64.h, with flat segments and no paging at first. */
#pragma once
#include "console.h"

struct regs { u32 eax, ecx, edx, ebx, ebp, esi, edi; };
struct frame { u32 edi, esi, ebp, esp_of_pusha, ebx, edx, ecx, eax, vector, error, eip, cs, eflags, esp, ss, es, ds, fs, gs; };
struct trap { int vector; u32 error, eip, cs, eflags, esp, ss, cr2, dr6, es, ds, fs, gs; struct frame *frame; };

extern struct regs in, out;
extern volatile struct trap trap;
typedef int handler(struct frame *frame);
extern handler *handlers[256];
extern u32 user_esp, user_eflags;
extern u64 gdt[32], idt[256];
extern u32 tss[26];
extern char esp0_stack_end[];

int run(const void *code);
int run_user(const void *code);
int run_v86(void);
void run_real(void);
void kernel_main(void);
void set_gate(int vector, u32 target, int type, int dpl);
void reset_gate(int vector);
void check_trap(const char *name, const void *code, int vector, u32 error, u32 offset);
void check_fault(const char *name, const void *code, u32 error, u32 offset, u32 cr2);
void check_ran(const char *name);

enum { KCODE = 0x08, KDATA = 0x10, UCODE = 0x1b, UDATA = 0x23, TSS = 0x28, CODE16 = 0x38, DATA16 = 0x40, FREE = 0x80 };
enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, CSO, TS, NP, SS, GP, PF, R15, MF, AC, MC, XM };
enum { P = 1, W = 2, U = 4, A = 32, D = 64, PS = 128, G = 256 };

#define SNIPPET_(text, tail)                                                                       \
    ({                                                                                             \
        const void *code_;                                                                         \
        asm volatile(".pushsection .snippets,\"ax\"\n.align 16\n771: " text "\n" tail              \
                     "\n.popsection\nmov $771b, %0"                                                \
                     : "=r"(code_));                                                               \
        code_;                                                                                     \
    })
#define SNIPPET(text) SNIPPET_(text, "ret")
#define USER_SNIPPET(text) SNIPPET_(text, "int $0x81")
#define ACCESSORS(name)                                                                            \
    static inline u32 read_##name(void)                                                            \
    {                                                                                              \
        u32 value;                                                                                 \
        asm volatile("mov %%" #name ", %0" : "=r"(value)::"memory");                               \
        return value;                                                                              \
    }                                                                                              \
    static inline void write_##name(u32 value) { asm volatile("mov %0, %%" #name ::"r"(value) : "memory"); }
ACCESSORS(cr0)
ACCESSORS(cr2)
ACCESSORS(cr3)
ACCESSORS(cr4)
static inline void invlpg(u32 gva) { asm volatile("invlpg (%0)" ::"r"(gva) : "memory"); }
