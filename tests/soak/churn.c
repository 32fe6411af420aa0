/* A just-in-time compiler that never stops: generates functions, runs each, discards them.
 *
 * `churn MIB`: until MIB mebibytes of machine code were generated and run. Every function's result
 * is computed a second time from the same description without it. The three usual ways to get code
 * into memory take turns: pages that are writable and executable, pages that are written and then
 * made executable, and pages mapped twice.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { REGION = 256 << 10, OPS_MAX = 96, FUNCTION_MAX = 2048 };

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint64_t rotate(uint64_t value, unsigned by)
{
    return by ? value << by | value >> (64 - by) : value;
}

static uint8_t *put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, 4);
    return at + 4;
}

static uint8_t *bytes(uint8_t *at, const char *code, int count)
{
    memcpy(at, code, count);
    return at + count;
}

/* Emits one function at `at` that runs at `runs`; its result for `x` goes to `result`. `earlier`
 * is a function of the same region to call, or none. */
static uint8_t *emit(uint8_t *at, const uint8_t *runs, const uint8_t *earlier, uint64_t gave,
                     uint64_t x, uint64_t *result)
{
    const uint8_t *start = at;
    int ops = 4 + draw() % (OPS_MAX - 4);
    uint64_t value = x;
    at = bytes(at, "\x48\x89\xf8", 3); /* mov rax, rdi */
    for (int op = 0; op < ops; op++) {
        uint64_t random = draw();
        uint32_t imm = random >> 32;
        int64_t wide = (int32_t)imm;
        switch (random % 8) {
        case 0: at = put32(bytes(at, "\x48\x05", 2), imm); value += wide; break;
        case 1: at = put32(bytes(at, "\x48\x35", 2), imm); value ^= wide; break;
        case 2: at = put32(bytes(at, "\x48\x69\xc0", 3), imm | 1); value *= wide | 1; break;
        case 3: at = bytes(at, "\x48\xc1\xc0", 3); *at++ = imm & 63; value = rotate(value, imm & 63); break;
        case 4: at = bytes(at, "\x48\xf7\xd0", 3); value = ~value; break;
        case 5: at = put32(bytes(at, "\x48\x8d\x84\x40", 4), imm); value = value * 3 + wide; break;
        case 6: /* test al, 1; jz over; sub rax, imm */
            at = put32(bytes(at, "\xa8\x01\x74\x06\x48\x2d", 6), imm);
            if (value & 1) value -= wide;
            break;
        case 7: /* a loop: mov ecx, n; L: lea rax, [rax + rax * 4 + 1]; dec ecx; jnz L */
            *at++ = 0xb9;
            at = put32(at, imm % 3 + 1);
            at = bytes(at, "\x48\x8d\x44\x80\x01\xff\xc9\x75\xf7", 9);
            for (uint32_t i = 0; i < imm % 3 + 1; i++) value = value * 5 + 1;
            break;
        }
    }
    if (earlier) { /* push rax; call earlier; pop rcx; add rax, rcx */
        *at++ = 0x50;
        *at++ = 0xe8;
        at = put32(at, (uint32_t)(earlier - (runs + (at - start) + 4)));
        at = bytes(at, "\x59\x48\x01\xc8", 4);
        value += gave;
    }
    *at++ = 0xc3;
    *result = value;
    return at;
}

static void fail(const char *what)
{
    printf("CHURN %s failed\n", what);
    exit(1);
}

static void *map(int protection, int flags, int fd)
{
    void *at = mmap(NULL, REGION, protection, flags, fd, 0);
    if (at == MAP_FAILED) fail("mmap");
    return at;
}

/* Fills a region with functions through `write`, and runs them in `run`, twice each. */
static uint64_t fill(uint8_t *write, uint8_t *run, int seal)
{
    static uint64_t results[REGION / 16];
    static const uint8_t *functions[REGION / 16];
    uint64_t x = draw();
    uint8_t *at = write;
    int count = 0;
    while (at < write + REGION - FUNCTION_MAX) {
        const uint8_t *here = run + (at - write);
        int other = count && draw() % 2 ? (int)(draw() % count) : -1;
        at = emit(at, here, other < 0 ? NULL : functions[other], other < 0 ? 0 : results[other], x,
                  &results[count]);
        functions[count++] = here;
    }
    if (seal && mprotect(run, REGION, PROT_READ | PROT_EXEC)) fail("mprotect");
    for (int turn = 0; turn < 2; turn++)
        for (int i = 0; i < count; i++)
            if (((uint64_t(*)(uint64_t))functions[i])(x) != results[i]) fail("a function");
    return at - write;
}

int main(int argc, char **argv)
{
    uint64_t wanted = strtoull(argc > 1 ? argv[1] : "1", NULL, 10) << 20;
    uint64_t made = 0, said = 0;
    uint8_t *open = map(PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int fd = memfd_create("code", 0);
    if (fd < 0 || ftruncate(fd, REGION)) fail("memfd");
    uint8_t *writable = map(PROT_READ | PROT_WRITE, MAP_SHARED, fd);
    uint8_t *runnable = map(PROT_READ | PROT_EXEC, MAP_SHARED, fd);
    while (made < wanted) {
        made += fill(open, open, 0);
        made += fill(writable, runnable, 0);
        uint8_t *sealed = map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        made += fill(sealed, sealed, 1);
        munmap(sealed, REGION);
        if (made - said >= wanted / 64) {
            said = made;
            printf("CHURN %llu KiB\n", (unsigned long long)made >> 10);
            fflush(stdout);
        }
    }
    printf("CHURN ok %llu\n", (unsigned long long)state);
    return 0;
}
