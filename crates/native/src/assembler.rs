//! The few host instructions that stubs are made of, besides the guest's own.

/// Bytes of one stub in the making.
#[derive(Default)]
pub(crate) struct Assembler {
    pub(crate) bytes: Vec<u8>,
}

impl Assembler {
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// ModRM (and displacement) of `[base + displacement]`; `base` is RSI or RDI, so no SIB byte.
    fn memory(&mut self, register: u8, base: u8, displacement: i32) {
        let low = ((register & 7) << 3) | base;
        match i8::try_from(displacement) {
            Ok(0) => self.put(&[low]),
            Ok(short) => self.put(&[0x40 | low, short as u8]),
            Err(_) => {
                self.put(&[0x80 | low]);
                self.put(&displacement.to_le_bytes());
            }
        }
    }

    fn rex_w(register: u8) -> u8 {
        0x48 | ((register >> 3) << 2)
    }

    /// `mov register, [base + displacement]`, 64 bits.
    pub(crate) fn load_gpr(&mut self, register: u8, base: u8, displacement: i32) {
        self.put(&[Self::rex_w(register), 0x8b]);
        self.memory(register, base, displacement);
    }

    /// `mov [base + displacement], register`, 64 bits.
    pub(crate) fn store_gpr(&mut self, register: u8, base: u8, displacement: i32) {
        self.put(&[Self::rex_w(register), 0x89]);
        self.memory(register, base, displacement);
    }

    /// `mov` between a register and `[base]` in an operand size of 2, 4 or 8 bytes.
    pub(crate) fn move_sized(&mut self, store: bool, size: usize, register: u8, base: u8) {
        if size == 2 {
            self.put(&[0x66]);
        }
        let rex = 0x40 | u8::from(size == 8) << 3 | ((register >> 3) << 2);
        self.put(&[rex, if store { 0x89 } else { 0x8b }]);
        self.memory(register, base, 0);
    }

    /// `movups xmm, [base + displacement]`, or the other way.
    pub(crate) fn move_xmm(&mut self, store: bool, xmm: u8, base: u8, displacement: i32) {
        if xmm >= 8 {
            self.put(&[0x44]);
        }
        self.put(&[0x0f, 0x10 | u8::from(store)]);
        self.memory(xmm, base, displacement);
    }

    /// `vmovups ymm, [base + displacement]`, or the other way.
    pub(crate) fn move_ymm(&mut self, store: bool, ymm: u8, base: u8, displacement: i32) {
        let prefix = if ymm >= 8 { 0x7c } else { 0xfc };
        self.put(&[0xc5, prefix, 0x10 | u8::from(store)]);
        self.memory(ymm, base, displacement);
    }

    /// `xorps xmm, xmm`.
    pub(crate) fn zero_xmm(&mut self, xmm: u8) {
        if xmm >= 8 {
            self.put(&[0x45]);
        }
        self.put(&[0x0f, 0x57, 0xc0 | (xmm & 7) << 3 | (xmm & 7)]);
    }

    /// Loads the status flags from the two bytes of `StatusFlags`; uses RAX.
    pub(crate) fn load_flags(&mut self, base: u8, displacement: i32) {
        self.put(&[0x0f, 0xb7]); // movzx eax, word [..]
        self.memory(0, base, displacement);
        self.put(&[0x04, 0x7f, 0x9e]); // add al, 7fh; sahf
    }

    /// Stores the status flags as `StatusFlags`; uses RAX.
    pub(crate) fn store_flags(&mut self, base: u8, displacement: i32) {
        self.put(&[0x9f, 0x0f, 0x90, 0xc0, 0x66, 0x89]); // lahf; seto al; mov [..], ax
        self.memory(0, base, displacement);
    }

    /// `ldmxcsr [base + displacement]`.
    pub(crate) fn load_mxcsr(&mut self, base: u8, displacement: i32) {
        self.put(&[0x0f, 0xae]);
        self.memory(2, base, displacement);
    }

    /// `stmxcsr [base + displacement]`.
    pub(crate) fn store_mxcsr(&mut self, base: u8, displacement: i32) {
        self.put(&[0x0f, 0xae]);
        self.memory(3, base, displacement);
    }

    /// Skips the `load_mxcsr_constant` that follows if the upper 16 of 32 bits at `[base]` are 0.
    pub(crate) fn skip_if_high_half_zero(&mut self, base: u8) {
        self.put(&[0xf7]); // test dword [base], ffff0000h
        self.memory(0, base, 0);
        self.put(&0xffff_0000u32.to_le_bytes());
        self.put(&[0x74, 7]); // jz
    }

    /// `ldmxcsr [rip + ..]` of the constant at offset `constant`; this stub begins at `origin`.
    pub(crate) fn load_mxcsr_constant(&mut self, origin: usize, constant: usize) {
        self.put(&[0x0f, 0xae, 0x15]);
        let next = origin + self.bytes.len() + 4;
        self.put(&(constant as i32 - next as i32).to_le_bytes());
    }

    /// `fxrstor64 [base + displacement]`.
    pub(crate) fn load_x87(&mut self, base: u8, displacement: i32) {
        self.put(&[0x48, 0x0f, 0xae]);
        self.memory(1, base, displacement);
    }

    /// `fxsave64 [base + displacement]`.
    pub(crate) fn store_x87(&mut self, base: u8, displacement: i32) {
        self.put(&[0x48, 0x0f, 0xae]);
        self.memory(0, base, displacement);
    }

    /// Zeroes `size` bytes (even) at `[base + displacement]`, flags untouched.
    pub(crate) fn zero_memory(&mut self, base: u8, displacement: i32, size: u8) {
        let (mut at, end) = (displacement, displacement + i32::from(size));
        while at < end {
            if end - at >= 4 {
                self.put(&[0xc7]); // mov dword [..], 0
                self.memory(0, base, at);
                self.put(&[0; 4]);
                at += 4;
            } else {
                self.put(&[0x66, 0xc7]); // mov word [..], 0
                self.memory(0, base, at);
                self.put(&[0; 2]);
                at += 2;
            }
        }
    }

    pub(crate) fn push(&mut self, register: u8) {
        if register >= 8 {
            self.put(&[0x41]);
        }
        self.put(&[0x50 | (register & 7)]);
    }

    pub(crate) fn pop(&mut self, register: u8) {
        if register >= 8 {
            self.put(&[0x41]);
        }
        self.put(&[0x58 | (register & 7)]);
    }
}
