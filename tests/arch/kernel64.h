/* What a 64-bit test kernel stands on.
 *
 * `run(code)` calls a snippet in ring 0 with the registers of `in`; whether it returns or faults,
 * its registers are in `out` and the exception, or -1, in `trap`. `run_user` does it in ring 3.
 * Snippets are position-independent; the user sees memory 0..1 GiB at 1..2 GiB: `USER(p)`. */
#pragma once
#include "console.h"

struct regs {
    u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15, rflags;
};

/* What the stubs push, and what the CPU pushed before. */
struct frame {
    u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 vector, error, rip, cs, rflags, rsp, ss;
};

struct trap {
    int vector;
    u32 count;
    u64 error, rip, cs, rflags, rsp, ss, cr2, dr6;
    struct frame *frame;
};

extern struct regs in, out;
extern volatile struct trap trap;
/* Called first; 0 returns to the interrupted program, 1 ends the run. */
typedef int handler(struct frame *frame);
extern handler *handlers[256];
extern u64 user_rsp, user_rflags;
extern u32 user_code, user_data;
extern u64 gdt[64];
extern u64 idt[512];
extern u32 tss[26 + 2048 / 4 + 6];
extern u64 pml4[512], pdpt[512], pd_low[512], pd_user[512], pd_high[512];
extern char rsp0_stack_end[];

int run(const void *code);
int run_user(const void *code);
void kernel_main(void);
/* Gate type 0xe interrupt, 0xf trap; dpl; ist. */
void set_gate(int vector, u64 target, int type, int dpl, int ist);
void reset_gate(int vector);
/* The exception, its error code and the offset of its saved RIP in the code. */
void check_trap(const char *name, const void *code, int vector, u64 error, u64 offset);
/* As check_trap with CR2. */
void check_fault(const char *name, const void *code, u64 error, u64 offset, u64 cr2);
/* The code ran to its end. */
void check_ran(const char *name);
/* A 4 KiB page, zeroed, never freed. */
void *page_alloc(void);
/* Maps one page; flags are the entry's. Levels above are writable, user, executable. */
u64 *map(u64 gva, u64 gpa, u64 flags);
/* The entry for an address at level 1 (4K) to 4. */
u64 *entry_of(u64 gva, int level);
void set_ist(int index, u64 top);

enum { KCODE = 0x08, KDATA = 0x10, UCODE32 = 0x1b, UDATA = 0x23, UCODE = 0x2b, TSS = 0x30,
       KCODE32 = 0x40, KDATA16 = 0x48, FREE = 0x80 };
enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, CSO, TS, NP, SS, GP, PF, R15, MF, AC, MC, XM };
enum { P = 1, W = 2, U = 4, PWT = 8, PCD = 16, A = 32, D = 64, PS = 128, G = 256 };
#define NX (1ull << 63)
#define USER_OFFSET 0x40000000ull
#define USER(p) ((typeof(p))((u64)(p) + USER_OFFSET))
#define NON_CANONICAL 0x8000000000000000ull

#define SNIPPET_(text, tail)                                                                       \
    ({                                                                                             \
        const void *code_;                                                                         \
        asm volatile(".pushsection .snippets,\"ax\"\n.align 16\n771: " text "\n" tail              \
                     "\n.popsection\nlea 771b(%%rip), %0"                                          \
                     : "=r"(code_));                                                               \
        code_;                                                                                     \
    })
/* Code for `run`, and for `run_user` at its user address. */
#define SNIPPET(text) SNIPPET_(text, "ret")
#define USER_SNIPPET(text) USER(SNIPPET_(text, "int $0x81"))

#define ACCESSORS(name, reg)                                                                       \
    static inline u64 read_##name(void)                                                            \
    {                                                                                              \
        u64 value;                                                                                 \
        asm volatile("mov %%" reg ", %0" : "=r"(value)::"memory");                                 \
        return value;                                                                              \
    }                                                                                              \
    static inline void write_##name(u64 value) { asm volatile("mov %0, %%" reg ::"r"(value) : "memory"); }
ACCESSORS(cr0, "cr0")
ACCESSORS(cr2, "cr2")
ACCESSORS(cr3, "cr3")
ACCESSORS(cr4, "cr4")
ACCESSORS(cr8, "cr8")
ACCESSORS(dr0, "dr0")
ACCESSORS(dr1, "dr1")
ACCESSORS(dr2, "dr2")
ACCESSORS(dr3, "dr3")
ACCESSORS(dr6, "dr6")
ACCESSORS(dr7, "dr7")
static inline u64 rdmsr(u32 msr)
{
    u32 low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return low | (u64)high << 32;
}
static inline void wrmsr(u32 msr, u64 value)
{
    asm volatile("wrmsr" ::"a"((u32)value), "d"((u32)(value >> 32)), "c"(msr) : "memory");
}
static inline void invlpg(u64 gva) { asm volatile("invlpg (%0)" ::"r"(gva) : "memory"); }
static inline u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return low | (u64)high << 32;
}
/* The exception of RDMSR/WRMSR, or -1. */
int try_rdmsr(u32 msr, u64 *value);
int try_wrmsr(u32 msr, u64 value);
enum { CR0_PE = 1, CR0_MP = 2, CR0_EM = 4, CR0_TS = 8, CR0_NE = 32, CR0_WP = 1 << 16, CR0_AM = 1 << 18 };
enum { CR4_VME = 1, CR4_TSD = 4, CR4_DE = 8, CR4_PSE = 16, CR4_PAE = 32, CR4_PGE = 128, CR4_PCE = 256,
       CR4_OSFXSR = 512, CR4_OSXMMEXCPT = 1024, CR4_UMIP = 2048, CR4_FSGSBASE = 1 << 16,
       CR4_PCIDE = 1 << 17, CR4_OSXSAVE = 1 << 18, CR4_SMEP = 1 << 20, CR4_SMAP = 1 << 21 };
enum { FL_CF = 1, FL_PF = 4, FL_AF = 16, FL_ZF = 64, FL_SF = 128, FL_TF = 0x100, FL_IF = 0x200,
       FL_DF = 0x400, FL_OF = 0x800, FL_NT = 0x4000, FL_RF = 0x10000, FL_VM = 0x20000, FL_AC = 0x40000 };
