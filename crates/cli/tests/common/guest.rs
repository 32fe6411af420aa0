//! Tiny guests in machine code: flat multiboot images of 32-bit code at 1 MiB.

const LOAD: u32 = 0x10_0000;
const HEADER_SIZE: u32 = 32;

/// A guest being written.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    code: Vec<u8>,
}

impl Guest {
    pub fn new() -> Guest {
        Guest::default()
    }

    fn bytes(mut self, bytes: &[u8]) -> Guest {
        self.code.extend(bytes);
        self
    }

    /// `out port, value` of a byte.
    pub fn out8(self, port: u16, value: u8) -> Guest {
        let [low, high] = port.to_le_bytes();
        self.bytes(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `out port, value` of a word.
    pub fn out16(self, port: u16, value: u16) -> Guest {
        let ([pl, ph], [vl, vh]) = (port.to_le_bytes(), value.to_le_bytes());
        self.bytes(&[0x66, 0xba, pl, ph, 0x66, 0xb8, vl, vh, 0x66, 0xef])
    }

    /// Writes to the first serial port.
    pub fn print(self, text: &str) -> Guest {
        text.bytes().fold(self, |guest, byte| guest.out8(0x3f8, byte))
    }

    /// ACPI power-off.
    pub fn power_off(self) -> Guest {
        self.out16(0x604, 0x3400).halt()
    }

    /// Reset through the chipset.
    pub fn reset(self) -> Guest {
        self.out8(0xcf9, 6).halt()
    }

    /// An exception without an interrupt table.
    pub fn triple_fault(self) -> Guest {
        // lidt [0x500], zeroes there; int3
        self.bytes(&[0x0f, 0x01, 0x1d, 0x00, 0x05, 0x00, 0x00, 0xcc])
    }

    /// `cli; hlt` for ever.
    pub fn halt(self) -> Guest {
        self.bytes(&[0xfa, 0xf4, 0xeb, 0xfd])
    }

    /// A loop that counts in EBX for ever.
    pub fn spin(self) -> Guest {
        self.bytes(&[0x43, 0xeb, 0xfd])
    }

    /// Writes a word of memory for ever, one more each time.
    pub fn store_more_and_more(self, address: u32) -> Guest {
        // 1: mov [address], ebx; inc ebx; jmp 1b
        let [a, b, c, d] = address.to_le_bytes();
        self.bytes(&[0x89, 0x1d, a, b, c, d, 0x43, 0xeb, 0xf7])
    }

    /// Counts down from `count` in ECX: that many branches.
    pub fn count_down(self, count: u32) -> Guest {
        // mov ecx, count; 1: dec ecx; jnz 1b
        let [a, b, c, d] = count.to_le_bytes();
        self.bytes(&[0xb9, a, b, c, d, 0x49, 0x75, 0xfd])
    }

    /// Writes a word of memory.
    pub fn store(self, address: u32, value: u32) -> Guest {
        let ([a, b, c, d], [e, f, g, h]) = (address.to_le_bytes(), value.to_le_bytes());
        self.bytes(&[0xc7, 0x05, a, b, c, d, e, f, g, h])
    }

    /// Reads a word of memory.
    pub fn load(self, address: u32) -> Guest {
        let [a, b, c, d] = address.to_le_bytes();
        self.bytes(&[0xa1, a, b, c, d])
    }

    /// Waits, busily, for the power button.
    pub fn wait_power_button(self) -> Guest {
        // mov dx, 0x600; 1: in ax, dx; test ah, 1; jz 1b
        self.bytes(&[0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf9])
    }

    /// Writes back what is typed at the first serial port, until that is `q`.
    pub fn echo(self) -> Guest {
        self.bytes(&[
            0x66, 0xba, 0xfd, 0x03, // 1: mov dx, 0x3fd
            0xec, // in al, dx
            0xa8, 0x01, // test al, 1
            0x74, 0xf7, // jz 1b
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xec, // in al, dx
            0xee, // out dx, al
            0x3c, b'q', // cmp al, 'q'
            0x75, 0xed, // jne 1b
        ])
    }

    /// Boots once more if this is the first time (a mark in RAM survives), else goes on.
    pub fn reset_once(self) -> Guest {
        // cmp byte [0x300000], 0x5a; je +n; mov byte [0x300000], 0x5a; <reset>; n:
        let reset = Guest::new().out8(0xcf9, 6).halt().code;
        let skip = 7 + reset.len() as u8;
        self.bytes(&[0x80, 0x3d, 0x00, 0x00, 0x30, 0x00, 0x5a, 0x74, skip])
            .bytes(&[0xc6, 0x05, 0x00, 0x00, 0x30, 0x00, 0x5a])
            .bytes(&reset)
    }

    /// The kernel file.
    pub fn image(self) -> Vec<u8> {
        const MAGIC: u32 = 0x1bad_b002;
        const FLAGS: u32 = 1 << 16;
        let end = LOAD + HEADER_SIZE + self.code.len() as u32;
        let check = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
        let header = [MAGIC, FLAGS, check, LOAD, LOAD, end, end, LOAD + HEADER_SIZE];
        let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        image.extend(self.code);
        image
    }
}
