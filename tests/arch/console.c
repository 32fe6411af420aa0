/* See console.h. */
#include "console.h"

static int checks;

static void put(char byte)
{
    if (byte == '\n')
        put('\r');
    while (!(inb(0x3fd) & 0x20))
        ;
    outb(0x3f8, byte);
}

static void put_hex(u64 value)
{
    int shift = 60;
    while (shift > 0 && !(value >> shift & 15))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void put_decimal(u32 value)
{
    if (value >= 10)
        put_decimal(value / 10);
    put('0' + value % 10);
}

static void vprint(const char *format, __builtin_va_list args)
{
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = __builtin_va_arg(args, const char *); *s; s++)
                put(*s);
            break;
        case 'd':
            put_decimal(__builtin_va_arg(args, u32));
            break;
        case 'x':
            put_hex(__builtin_va_arg(args, u32));
            break;
        case 'l':
            format++;
            put_hex(__builtin_va_arg(args, u64));
            break;
        }
    }
}

void print(const char *format, ...)
{
    __builtin_va_list args;
    __builtin_va_start(args, format);
    vprint(format, args);
    __builtin_va_end(args);
}

void check(const char *name, int ok, const char *format, ...)
{
    checks++;
    print("%s %s", ok ? "PASS" : "FAIL", name);
    if (!ok) {
        __builtin_va_list args;
        __builtin_va_start(args, format);
        print(": ");
        vprint(format, args);
        __builtin_va_end(args);
    }
    print("\n");
}

void check_eq(const char *name, u64 got, u64 want)
{
    check(name, got == want, "is %lx, should be %lx", got, want);
}

static __attribute__((noreturn)) void leave(u32 status)
{
    for (;;)
        outl(0xf4, status);
}

void done(void)
{
    print("DONE %d\n", checks);
    leave(0);
}

void fatal(const char *format, ...)
{
    __builtin_va_list args;
    __builtin_va_start(args, format);
    print("FAIL fatal: ");
    vprint(format, args);
    print("\n");
    __builtin_va_end(args);
    leave(1);
}

void *memset(void *to, int byte, uptr size)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, uptr size)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size)::"memory");
    return start;
}

int memcmp(const void *a, const void *b, uptr size)
{
    for (const u8 *x = a, *y = b; size--; x++, y++)
        if (*x != *y)
            return *x - *y;
    return 0;
}
