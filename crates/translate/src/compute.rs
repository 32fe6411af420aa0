//! Instructions that compute: the guest's own, its registers renamed to where they are kept and
//! its memory operand to `[RDI]`.

use cpu::Access;
use iced_x86::{Code, Instruction, Mnemonic, OpAccess, OpCodeOperandKind, OpKind, Register};
use smallvec::SmallVec;

use crate::assembler::Op;
use crate::block::{Emitted, Emitter, Unsupported};
use crate::classify::Unit;
use crate::direct::{self, Uses};
use crate::effects::is_read;
use crate::encode::{Encoded, Memory, set_displacement};
use crate::flags;
use crate::layout::{Flags, GUEST_RAX, HOME, Home, host};
use crate::mirror::Taken;
use crate::operands::{Named, number};
use crate::plan::Planned;
use crate::site::Faults;

/// A guest register that the instruction names, moved to a scratch register for it.
#[derive(Clone, Copy)]
struct Moved {
    guest: u8,
    to: u8,
    load: bool,
    store: bool,
}

/// How an instruction's registers are placed.
struct Placing {
    instruction: Instruction,
    /// Guest RAX is in host RAX for the instruction.
    natural_rax: bool,
    moved: SmallVec<[Moved; 4]>,
}

/// The code whose operands can be renamed.
fn general_form(code: Code) -> Code {
    macro_rules! forms {
        ($($name:ident: $al:ident $ax:ident $eax:ident $rax:ident => $m8:ident $m16:ident $m32:ident
            $m64:ident),*) => {
            match code {
                $(Code::$al => Code::$m8, Code::$ax => Code::$m16,
                Code::$eax => Code::$m32, Code::$rax => Code::$m64,)*
                Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
                Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
                Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
                Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
                Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
                Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
                Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
                Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
                Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
                Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
                Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
                other => other,
            }
        };
    }
    forms! {
        add: Add_AL_imm8 Add_AX_imm16 Add_EAX_imm32 Add_RAX_imm32
            => Add_rm8_imm8 Add_rm16_imm16 Add_rm32_imm32 Add_rm64_imm32,
        or: Or_AL_imm8 Or_AX_imm16 Or_EAX_imm32 Or_RAX_imm32
            => Or_rm8_imm8 Or_rm16_imm16 Or_rm32_imm32 Or_rm64_imm32,
        adc: Adc_AL_imm8 Adc_AX_imm16 Adc_EAX_imm32 Adc_RAX_imm32
            => Adc_rm8_imm8 Adc_rm16_imm16 Adc_rm32_imm32 Adc_rm64_imm32,
        sbb: Sbb_AL_imm8 Sbb_AX_imm16 Sbb_EAX_imm32 Sbb_RAX_imm32
            => Sbb_rm8_imm8 Sbb_rm16_imm16 Sbb_rm32_imm32 Sbb_rm64_imm32,
        and: And_AL_imm8 And_AX_imm16 And_EAX_imm32 And_RAX_imm32
            => And_rm8_imm8 And_rm16_imm16 And_rm32_imm32 And_rm64_imm32,
        sub: Sub_AL_imm8 Sub_AX_imm16 Sub_EAX_imm32 Sub_RAX_imm32
            => Sub_rm8_imm8 Sub_rm16_imm16 Sub_rm32_imm32 Sub_rm64_imm32,
        xor: Xor_AL_imm8 Xor_AX_imm16 Xor_EAX_imm32 Xor_RAX_imm32
            => Xor_rm8_imm8 Xor_rm16_imm16 Xor_rm32_imm32 Xor_rm64_imm32,
        cmp: Cmp_AL_imm8 Cmp_AX_imm16 Cmp_EAX_imm32 Cmp_RAX_imm32
            => Cmp_rm8_imm8 Cmp_rm16_imm16 Cmp_rm32_imm32 Cmp_rm64_imm32,
        test: Test_AL_imm8 Test_AX_imm16 Test_EAX_imm32 Test_RAX_imm32
            => Test_rm8_imm8 Test_rm16_imm16 Test_rm32_imm32 Test_rm64_imm32
    }
}

/// Whether it is a bit test whose operand may be beyond the memory it names.
pub(crate) fn is_bit_string(guest: &Instruction) -> bool {
    use Mnemonic::*;
    guest.op0_kind() == OpKind::Memory
        && guest.op1_kind() == OpKind::Register
        && matches!(guest.mnemonic(), Bt | Bts | Btr | Btc)
}

/// Whether operand `op` may be memory.
fn takes_memory(instruction: &Instruction, op: u32) -> bool {
    use OpCodeOperandKind::*;
    let kind = instruction.op_code().op_kind(op);
    matches!(kind, r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem)
}

/// The code that does the same with the other operand in ModRM.rm.
fn mirrored(code: Code) -> Option<Code> {
    macro_rules! forms {
        ($($rm_r:ident $r_rm:ident),* $(,)?) => {
            match code {
                $(Code::$rm_r => Some(Code::$r_rm), Code::$r_rm => Some(Code::$rm_r),)*
                _ => None,
            }
        };
    }
    forms! {
        Add_rm16_r16 Add_r16_rm16, Add_rm32_r32 Add_r32_rm32, Add_rm64_r64 Add_r64_rm64,
        Or_rm16_r16 Or_r16_rm16, Or_rm32_r32 Or_r32_rm32, Or_rm64_r64 Or_r64_rm64,
        Adc_rm16_r16 Adc_r16_rm16, Adc_rm32_r32 Adc_r32_rm32, Adc_rm64_r64 Adc_r64_rm64,
        Sbb_rm16_r16 Sbb_r16_rm16, Sbb_rm32_r32 Sbb_r32_rm32, Sbb_rm64_r64 Sbb_r64_rm64,
        And_rm16_r16 And_r16_rm16, And_rm32_r32 And_r32_rm32, And_rm64_r64 And_r64_rm64,
        Sub_rm16_r16 Sub_r16_rm16, Sub_rm32_r32 Sub_r32_rm32, Sub_rm64_r64 Sub_r64_rm64,
        Xor_rm16_r16 Xor_r16_rm16, Xor_rm32_r32 Xor_r32_rm32, Xor_rm64_r64 Xor_r64_rm64,
        Cmp_rm16_r16 Cmp_r16_rm16, Cmp_rm32_r32 Cmp_r32_rm32, Cmp_rm64_r64 Cmp_r64_rm64,
        Mov_rm16_r16 Mov_r16_rm16, Mov_rm32_r32 Mov_r32_rm32, Mov_rm64_r64 Mov_r64_rm64,
        Add_rm8_r8 Add_r8_rm8, Or_rm8_r8 Or_r8_rm8, Adc_rm8_r8 Adc_r8_rm8,
        Sbb_rm8_r8 Sbb_r8_rm8, And_rm8_r8 And_r8_rm8, Sub_rm8_r8 Sub_r8_rm8,
        Xor_rm8_r8 Xor_r8_rm8, Cmp_rm8_r8 Cmp_r8_rm8, Mov_rm8_r8 Mov_r8_rm8,
    }
}

/// Whether the instruction works on RAX without naming it.
pub(crate) fn has_implicit_rax(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    match instruction.mnemonic() {
        Imul => instruction.op_count() == 1,
        Fnstsw => instruction.op0_kind() == OpKind::Register,
        Mul | Div | Idiv | Cbw | Cwde | Cdqe | Cwd | Cdq | Cqo | Cmpxchg | Cmpxchg8b
        | Cmpxchg16b | Pcmpestri | Pcmpestrm | Vpcmpestri | Vpcmpestrm | Pcmpestri64
        | Pcmpestrm64 | Vpcmpestri64 | Vpcmpestrm64 => true,
        _ => false,
    }
}

/// Whether the hardware may raise an exception other than a page fault, vectors aside.
pub(crate) fn may_fault(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Cmpxchg16b)
}

fn set_memory(instruction: &mut Instruction, operand: direct::Operand) {
    let (index, scale) = operand.index.map_or((Register::None, 1), |(index, scale)| {
        (Register::RAX + u32::from(index), u32::from(scale))
    });
    instruction.set_memory_base(Register::RAX + u32::from(operand.base));
    instruction.set_memory_index(index);
    instruction.set_memory_index_scale(scale);
    set_displacement(instruction, operand.displacement);
}

fn uses_of(planned: &Planned) -> Uses {
    let (named, low) = (planned.operands.named(), planned.operands.has_high_byte());
    let names_rax = named.iter().any(|named| named.guest == 0);
    let in_word = |named: &&Named| matches!(HOME[usize::from(named.guest)], Home::Word(_));
    let words = named.iter().filter(in_word).count();
    let natural_rax = planned.effects.of_code.implicit_rax || (low && names_rax);
    Uses { low, natural_rax, words }
}

impl Emitter<'_> {
    pub(crate) fn compute(&mut self, planned: &Planned, unit: Unit) -> Emitted {
        let guest = &planned.instruction;
        if planned.effects.of_code.bit_string {
            self.end_mirrors();
            return self.bit_string(guest);
        }
        let memory = planned.operands.memory;
        let access = if memory { Some(memory_access(planned)?) } else { None };
        let may_go = direct::may_go(unit, access == Some(Access::Write));
        let direct = memory && may_go && self.is_direct(guest.memory_size().size());
        let uses = uses_of(planned);
        let operand = match direct {
            true => Some(self.direct_operand(planned, uses)?),
            false => None,
        };
        match planned.operand {
            _ if !memory || direct => {}
            Some(_) => self.free(host::RDI),
            None => {
                // For the lookup, before registers are chosen.
                self.save_flags();
                self.end_mirrors();
            }
        }
        if uses.is_plain() && !planned.redone {
            return self.compute_in_place(planned, unit, access, operand);
        }
        let mut placing = self.place_registers(planned, uses, memory, operand)?;
        if let (Some(access), false) = (access, direct) {
            let displacement = self.operand(planned, access)?;
            set_displacement(&mut placing.instruction, displacement);
        } else if placing.moved.iter().all(|moved| moved.to != host::RDI) {
            self.kept_rdi();
        }
        self.ready_flags(planned, placing.natural_rax);
        for moved in placing.moved.iter().filter(|moved| moved.load) {
            self.load_moved(*moved);
        }
        if placing.natural_rax {
            self.code.copy(host::RAX, GUEST_RAX);
        }
        let start = self.place();
        self.encode(&placing.instruction)?;
        self.note_faults(planned, unit, access.filter(|_| direct), start);
        if placing.natural_rax {
            self.code.copy(GUEST_RAX, host::RAX);
        }
        for moved in placing.moved.iter().filter(|moved| moved.store) {
            match HOME[usize::from(moved.guest)] {
                Home::Word(_) => self.defer_home(moved.to, moved.guest),
                Home::Host(to) => self.code.copy(to, moved.to),
            }
        }
        if planned.flags.changes {
            let redo = planned.redone && placing.moved.is_empty() && !placing.natural_rax;
            let redo =
                redo.then(|| flags::redo(&mut self.workshop.encodings, &placing.instruction));
            self.made_flags(redo.flatten());
        }
        Ok(())
    }

    /// As [`Emitter::compute`], where all general registers that the instruction names are at home
    /// in the host's; its memory operand is `operand`, or looked up.
    fn compute_in_place(
        &mut self,
        planned: &Planned,
        unit: Unit,
        access: Option<Access>,
        operand: Option<direct::Operand>,
    ) -> Emitted {
        let memory = match (operand, access) {
            (None, Some(access)) => {
                let displacement = self.operand(planned, access)?;
                Some(direct::Operand { base: host::RDI, index: None, displacement })
            }
            _ => {
                self.kept_rdi();
                operand
            }
        };
        self.ready_flags(planned, false);
        let start = self.place();
        let at = memory.map(|it| Memory::at(it.base, it.index, it.displacement));
        let home = |guest: u8| match HOME[usize::from(guest)] {
            Home::Host(register) => Some(register),
            Home::Word(_) => None,
        };
        let (guest, operands) = (&planned.instruction, &planned.operands);
        match self.workshop.encodings.encode_renamed(guest, operands, home, at) {
            Some(encoded) => self.put_encoded(encoded),
            None => {
                let placing =
                    self.place_registers(planned, Uses::default(), memory.is_some(), memory)?;
                self.encode(&placing.instruction)?;
            }
        }
        self.note_faults(planned, unit, access.filter(|_| operand.is_some()), start);
        if planned.flags.changes {
            self.made_flags(None);
        }
        Ok(())
    }

    /// Has flags in RFLAGS where the instruction asks for them, and AX free where it is `taken`.
    fn ready_flags(&mut self, planned: &Planned, taken: bool) {
        let flags = planned.flags;
        if self.flags == Flags::Saved && !planned.flags_before {
            self.made_flags(None); // whatever RFLAGS holds
        }
        let reads = flags.reads || (flags.needs && planned.flags_after);
        if reads || (taken && self.flags == Flags::Saved) {
            self.restore_flags();
        }
    }

    /// The instruction at `start` may fault: for its access by the host's page tables, or else.
    fn note_faults(&mut self, planned: &Planned, unit: Unit, direct: Option<Access>, start: u32) {
        match direct {
            Some(access) => self.note_fault(start, Faults::Access(access)),
            None if unit != Unit::Integer || planned.effects.of_code.may_fault => {
                self.note_fault(start, Faults::Instruction)
            }
            None => {}
        }
    }

    /// A bit test of memory whose offset may reach beyond the operand (SDM vol. 2, "BT"): the word
    /// it falls in is found first, and the test is done in RSI.
    fn bit_string(&mut self, guest: &Instruction) -> Emitted {
        let (bits, writes) = (guest.op1_register(), guest.mnemonic() != Mnemonic::Bt);
        let Home::Host(offset) = HOME[usize::from(number(bits))] else { return Err(Unsupported) };
        if bits.size() < 4 || guest.memory_base().is_gpr32() || guest.memory_index().is_gpr32() {
            return Err(Unsupported);
        }
        let resume = self.resume_place();
        self.operand_offset(guest, host::RDI)?;
        // movsxd rsi, r32 or mov rsi, r64; sar rsi, 5 or 6; lea rdi, [rdi + rsi * 4 or 8]
        let wide = bits.size() == 8;
        let opcode = if wide { 0x8b } else { 0x63 };
        self.code.put(&[0x48 | (offset >> 3), opcode, 0xf0 | (offset & 7)]);
        self.code.put(&[0x48, 0xc1, 0xfe, if wide { 6 } else { 5 }]);
        let scale = bits.size() as u8;
        self.code.lea_scaled(host::RDI, Some(host::RDI), (host::RSI, scale), 0);
        self.add_segment_base(guest);
        let access = if writes { Access::Write } else { Access::Read };
        self.lookup(access, bits.size() as u16, resume)?;
        self.restore_flags();
        let rex = if wide { 0x48 } else { 0x40 };
        self.code.put(&[rex, 0x8b, 0x37]); // mov rsi, [rdi]
        let mut test = *guest;
        test.set_segment_prefix(Register::None);
        test.set_has_lock_prefix(false);
        test.set_op0_kind(OpKind::Register);
        test.set_op0_register(native::sized(host::RSI, bits.size()));
        test.set_op1_register(native::sized(offset, bits.size()));
        self.encode(&test)?;
        if writes {
            self.code.put(&[rex, 0x89, 0x37]); // mov [rdi], rsi
        }
        Ok(())
    }

    /// What the instruction reads of a guest register to the scratch register it has there.
    fn load_moved(&mut self, moved: Moved) {
        match HOME[usize::from(moved.guest)] {
            Home::Word(word) if self.mirrors.find(word) == Some(moved.to) => {}
            Home::Word(word) => {
                self.code.op_word(Op::Load, moved.to, word);
                self.note_loaded(moved.to, moved.guest);
            }
            Home::Host(from) => self.code.copy(moved.to, from),
        }
    }

    /// A guest register to host register `to`.
    pub(crate) fn load_home(&mut self, to: u8, guest: u8) {
        match HOME[usize::from(guest)] {
            Home::Host(from) => self.code.copy(to, from),
            Home::Word(word) => self.code.op_word(Op::Load, to, word),
        }
    }

    /// Host register `from` to a guest register.
    pub(crate) fn store_home(&mut self, from: u8, guest: u8) {
        match HOME[usize::from(guest)] {
            Home::Host(to) => self.code.copy(to, from),
            Home::Word(word) => self.code.op_word(Op::Store, from, word),
        }
    }

    fn encode(&mut self, instruction: &Instruction) -> Emitted {
        let encoded = self.workshop.encodings.encode(instruction).ok_or(Unsupported)?;
        self.put_encoded(encoded);
        Ok(())
    }

    fn put_encoded(&mut self, Encoded { head, tail }: Encoded) {
        self.code.put_word(head.bytes, head.size.into());
        self.code.put_word(tail.bytes, tail.size.into());
    }

    /// Makes one register operand that is kept in a word a memory operand, where the instruction
    /// has a form for it that does the same; which one.
    fn use_word(&self, planned: &Planned, instruction: &mut Instruction) -> Option<u8> {
        use Mnemonic::*;
        let in_word = |named: &Named| match HOME[usize::from(named.guest)] {
            Home::Word(word) if self.mirrors.find(word).is_none() => Some((*named, word)),
            _ => None,
        };
        let all = planned.operands.named();
        let (named, word) = all.iter().find_map(in_word)?;
        // With memory these do something else, or other accesses.
        if matches!(instruction.mnemonic(), Bt | Bts | Btr | Btc | Xchg | Xadd | Cmpxchg) {
            return None;
        }
        // OF after rotating by more than one is undefined: Intel's processors keep it where a
        // register is rotated by an immediate, and compute it otherwise. The interpreter rotates
        // registers.
        if matches!(instruction.mnemonic(), Rol | Ror | Rcl | Rcr | Shld | Shrd) {
            return None;
        }
        if all.iter().filter(|other| other.guest == named.guest).count() > 1 {
            return None;
        }
        let op = u32::from(named.operand);
        let mut other = *instruction;
        if !takes_memory(&other, op) {
            other.set_code(mirrored(other.code())?);
        }
        let writes = !is_read(planned.effects.operand(named.operand));
        if !takes_memory(&other, op) || self.is_worth_holding(word) {
            return None;
        }
        other.set_op_kind(op, OpKind::Memory);
        // A register's upper half is zeroed, and some write less to memory.
        let whole = other.memory_size().size() == usize::from(named.size) && named.size != 4;
        if writes && !whole {
            return None;
        }
        other.set_memory_base(Register::RSP);
        other.set_memory_index(Register::None);
        other.set_memory_index_scale(1);
        set_displacement(&mut other, word);
        *instruction = other;
        Some(named.operand)
    }

    /// `direct` is where the memory operand is; otherwise it will be at RDI.
    fn place_registers(
        &mut self,
        planned: &Planned,
        uses: Uses,
        memory: bool,
        direct: Option<direct::Operand>,
    ) -> Result<Placing, Unsupported> {
        let guest = &planned.instruction;
        let mut instruction = *guest;
        instruction.set_code(general_form(guest.code()));
        instruction.set_segment_prefix(Register::None);
        instruction.set_has_lock_prefix(false);
        instruction.set_has_rep_prefix(false);
        instruction.set_has_repne_prefix(false);
        instruction.set_has_xacquire_prefix(false);
        instruction.set_has_xrelease_prefix(false);
        if memory {
            let at_rdi = direct::Operand { base: host::RDI, index: None, displacement: 0 };
            set_memory(&mut instruction, direct.unwrap_or(at_rdi));
        }
        let Uses { low: high_byte, natural_rax, .. } = uses;
        let in_word =
            if memory || high_byte { None } else { self.use_word(planned, &mut instruction) };
        let mut placing = Placing { instruction, natural_rax, moved: SmallVec::new() };
        let mut taken = match direct {
            Some(operand) => operand.scratch(),
            None if memory => Taken::from_slice(&[host::RDI]),
            None => Taken::new(),
        };
        if natural_rax {
            self.free(host::RAX);
            taken.push(host::RAX);
        }
        for &named in planned.operands.named() {
            if named.high || in_word == Some(named.operand) {
                continue;
            }
            let to = placing.place(self, named, high_byte, &mut taken, planned)?;
            placing
                .instruction
                .set_op_register(u32::from(named.operand), native::sized(to, named.size.into()));
        }
        Ok(placing)
    }
}

/// What it needs of its memory operand's page.
fn memory_access(planned: &Planned) -> Result<Access, Unsupported> {
    match planned.effects.of_code.memory {
        None | Some(OpAccess::None | OpAccess::NoMemAccess) => Err(Unsupported),
        Some(access) if is_read(access) => Ok(Access::Read),
        Some(_) => Ok(Access::Write),
    }
}

impl Placing {
    /// The host register for an operand.
    fn place(
        &mut self,
        emitter: &mut Emitter<'_>,
        named: Named,
        high_byte: bool,
        taken: &mut Taken,
        planned: &Planned,
    ) -> Result<u8, Unsupported> {
        let home = HOME[usize::from(named.guest)];
        match home {
            Home::Host(GUEST_RAX) if self.natural_rax => return Ok(host::RAX),
            Home::Host(home) if !high_byte || home < 4 => return Ok(home),
            _ => {}
        }
        if high_byte && named.size == 1 {
            return Err(Unsupported);
        }
        let access = planned.effects.operand(named.operand);
        let keeps = matches!(planned.instruction.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
        let load = access != OpAccess::Write || named.size < 4 || keeps;
        let store = !is_read(access);
        let same = self.moved.iter_mut().find(|moved| moved.guest == named.guest);
        if let Some(moved) = same {
            moved.load |= load;
            moved.store |= store;
            return Ok(moved.to);
        }
        let to = emitter.choose_scratch(home, taken)?;
        taken.push(to);
        self.moved.push(Moved { guest: named.guest, to, load, store });
        Ok(to)
    }
}
