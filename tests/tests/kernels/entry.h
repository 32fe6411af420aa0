/* Multiboot entry and port I/O of the kernels in this folder: 32-bit protected mode, no paging. */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__asm__(".section .multiboot, \"a\"\n"
        ".align 4\n"
        ".long 0x1badb002, 0, -0x1badb002\n"
        ".text\n"
        ".globl _start\n"
        "_start: cli\n"
        "cld\n"
        "mov $stack_end, %esp\n"
        "push %ebx\n"
        "call kernel_main\n"
        "1: cli\n"
        "hlt\n"
        "jmp 1b\n"
        ".bss\n"
        ".align 16\n"
        ".skip 16384\n"
        ".globl stack_end\n"
        "stack_end: .skip 16\n"
        ".text\n");

static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port)); }
static inline u32 in32(u16 port) {
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void print(const char *text) {
    while (*text) out8(0x3f8, *text++);
}

static u64 dice_state = 1;
static inline u32 dice(void) {
    dice_state ^= dice_state << 13;
    dice_state ^= dice_state >> 7;
    dice_state ^= dice_state << 17;
    return dice_state >> 16;
}

/* `seed=N` of the command line. */
static inline void seed_dice(const u32 *multiboot) {
    const char *text = multiboot[0] & 4 ? (const char *)multiboot[4] : "";
    u32 seed = 0;
    while (*text && !(text[0] == 's' && text[1] == 'e' && text[4] == '=')) text++;
    for (text += *text ? 5 : 0; *text >= '0' && *text <= '9'; text++) seed = seed * 10 + *text - '0';
    dice_state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < 20; i++) dice();
}
