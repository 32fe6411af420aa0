/* A guest that misprograms every field of every virtio device it finds: registers, queues,
   descriptors, rings. What it can damage itself (its code below 8 MiB) it leaves alone. */
#include "entry.h"

#define ROUNDS 1500u
#define WINDOW 0x800000u
#define WINDOW_SIZE 0x400000u
#define RAM_END 0x2000000u

struct device { u32 common, notify, isr, config, notify_step; };
static struct device devices[32];
static u32 device_count;

static u32 pci(u32 slot, u32 offset) {
    out32(0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc));
    return in32(0xcfc);
}
static void pci_write(u32 slot, u32 offset, u32 value) {
    out32(0xcf8, 0x80000000u | slot << 11 | (offset & 0xfc));
    out32(0xcfc, value);
}
static u8 pci8(u32 slot, u32 offset) { return pci(slot, offset) >> (offset & 3) * 8; }

static void write_as(u32 address, u32 value, u32 width) {
    if (width == 1) *(volatile u8 *)address = value;
    else if (width == 2) *(volatile u16 *)address = value;
    else *(volatile u32 *)address = value;
}

/* Finds the register windows by the capabilities; BARs without an address get one. */
static void find(u32 slot) {
    static u32 next_bar = 0xe0000000u;
    struct device *device = &devices[device_count];
    if ((pci(slot, 0) & 0xffff) != 0x1af4 || device_count == 32) return;
    for (u32 bar = 0; bar < 6; bar++) {
        if (pci(slot, 0x10 + bar * 4) & ~15u) continue;
        pci_write(slot, 0x10 + bar * 4, 0xffffffff);
        u32 size = ~(pci(slot, 0x10 + bar * 4) & ~15u) + 1;
        if (!size) continue;
        next_bar = (next_bar + size - 1) & ~(size - 1);
        pci_write(slot, 0x10 + bar * 4, next_bar);
        next_bar += size;
    }
    pci_write(slot, 4, 6);
    for (u32 at = pci8(slot, 0x34), n = 0; at && n < 48; at = pci8(slot, at + 1), n++) {
        if (pci8(slot, at) != 9) continue;
        u32 address = (pci(slot, 0x10 + pci8(slot, at + 4) * 4) & ~15u) + pci(slot, at + 8);
        switch (pci8(slot, at + 3)) {
        case 1: device->common = address; break;
        case 2: device->notify = address; device->notify_step = pci(slot, at + 16); break;
        case 3: device->isr = address; break;
        case 4: device->config = address; break;
        }
    }
    if (device->common) device_count++;
}

/* An address that is plausible, or at the edge of RAM, or nowhere, or wraps. */
static u64 address(void) {
    switch (dice() % 8) {
    case 0: return RAM_END - dice() % 64;
    case 1: return (u64)dice() << 32 | dice() | 1ull << 40;
    case 2: return ~0ull - dice() % 4096;
    case 3: return 0xc0000000u + dice() % 0x10000;
    case 4: return WINDOW + dice() % WINDOW_SIZE;
    default: return WINDOW + (dice() % WINDOW_SIZE & ~0xfffu);
    }
}

static u32 number(void) {
    static const u32 odd[] = {0, 1, 2, 3, 255, 256, 257, 1024, 32768, 65535, 0x7fffffff, ~0u};
    return dice() & 1 ? odd[dice() % 12] : dice();
}

static void fill_memory(void) {
    for (u32 n = 0; n < 64; n++) {
        u32 *descriptor = (u32 *)(WINDOW + (dice() % WINDOW_SIZE & ~0xfffu)) + dice() % 64 * 4;
        u64 where = address();
        descriptor[0] = where;
        descriptor[1] = where >> 32;
        descriptor[2] = dice() & 1 ? dice() % 70000 : number();
        descriptor[3] = (dice() % 8) | (dice() & 1 ? dice() % 8 : number()) << 16;
        *(u16 *)(WINDOW + (dice() % WINDOW_SIZE & ~0xfffu) + 2) = dice() % 16;
    }
}

/* A driver that gets far enough to have its queue read. */
static void start(const struct device *device) {
    *(volatile u8 *)(device->common + 20) = 0;
    *(volatile u8 *)(device->common + 20) = 3;
    *(volatile u32 *)(device->common + 8) = 1;
    *(volatile u32 *)(device->common + 12) = dice() % 8 ? 1 : number();
    *(volatile u32 *)(device->common + 8) = 0;
    *(volatile u32 *)(device->common + 12) = dice() & 1 ? 0 : dice();
    *(volatile u8 *)(device->common + 20) = 11;
    for (u32 queue = 0; queue < 3; queue++) {
        *(volatile u16 *)(device->common + 22) = queue;
        if (dice() & 1) *(volatile u16 *)(device->common + 24) = dice() & 1 ? 1u << dice() % 10 : dice();
        for (u32 field = 32; field < 56; field += 8) {
            u64 where = address();
            *(volatile u32 *)(device->common + field) = where;
            *(volatile u32 *)(device->common + field + 4) = where >> 32;
        }
        *(volatile u16 *)(device->common + 26) = dice() % 4 ? dice() % 4 : dice();
        *(volatile u16 *)(device->common + 28) = dice() % 8 ? 1 : dice();
    }
    *(volatile u8 *)(device->common + 20) = 15;
}

static void abuse(const struct device *device) {
    fill_memory();
    if (dice() % 3) start(device);
    for (u32 n = 0; n < 24; n++) {
        u32 width = 1u << dice() % 3;
        switch (dice() % 6) {
        case 0: write_as(device->common + dice() % 64, number(), width); break;
        case 1: if (device->config) write_as(device->config + dice() % 64, number(), width); break;
        case 2: *(volatile u32 *)(device->common + (dice() % 16) * 4); break;
        case 3: *(volatile u8 *)device->isr; break;
        default: *(volatile u16 *)(device->notify + dice() % 4 * device->notify_step) = dice() % 5; break;
        }
    }
}

void kernel_main(const u32 *multiboot) {
    seed_dice(multiboot);
    for (u32 slot = 0; slot < 32; slot++) find(slot);
    print("ABUSE\n");
    for (u32 round = 0; round < ROUNDS; round++) abuse(&devices[dice() % device_count]);
    for (u32 n = 0; n < device_count; n++) *(volatile u8 *)(devices[n].common + 20) = 0;
    print("DONE\n");
    out32(0xf4, device_count);
}
