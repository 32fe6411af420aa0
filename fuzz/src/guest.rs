//! Guest code gone wild: random bytes as 64-, 32- and 16-bit code at any privilege, with random
//! page tables, descriptors and handlers.
//!
//! Input: the mode, flags and registers, patches to the system tables, the exception handler, the
//! code. What must hold: no panic, no hang, and the same state hash when the same input runs again
//! with stops at other places (rule: what the guest sees does not depend on where it is stopped).

use cpu::{VcpuSaved, cr, flag, gpr};
use machine::Machine;
use saved::Section;

use crate::input::Input;
use crate::rig::{self, Ending, IMAGE, Impatient};

const BRANCHES: u64 = 3000;
const PATCHES_MAX: u8 = 32;

/// Where things are in the image, which is loaded at [`IMAGE`].
mod at {
    pub const GDT: usize = 0x1000;
    pub const IDT: usize = 0x2000;
    pub const TSS: usize = 0x3000;
    pub const PML4: usize = 0x4000;
    pub const PDPT: usize = 0x5000;
    pub const PD: usize = 0x6000;
    pub const PT: usize = 0x7000;
    pub const LEGACY: usize = 0x8000;
    pub const HANDLER: usize = 0x9000;
    pub const CODE: usize = 0xa000;
    pub const DATA: usize = 0xc000;
    pub const STACK: usize = 0xf000;
    pub const END: usize = 0x1_0000;
}

/// How the code runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Long,
    Compatibility,
    Pae,
    Legacy,
    Flat,
    Protected16,
    Real,
    V86,
}

const MODES: [(Mode, u8); 13] = [
    (Mode::Long, 0),
    (Mode::Long, 3),
    (Mode::Compatibility, 0),
    (Mode::Compatibility, 3),
    (Mode::Pae, 0),
    (Mode::Pae, 3),
    (Mode::Legacy, 0),
    (Mode::Legacy, 3),
    (Mode::Flat, 0),
    (Mode::Flat, 3),
    (Mode::Protected16, 0),
    (Mode::Real, 0),
    (Mode::V86, 3),
];

/// Runs one input.
pub fn run(data: &[u8]) {
    makes_headway(data);
}

/// Runs one input; whether the guest went on. One that stands still is slow, and of no use to
/// make others from.
pub fn makes_headway(data: &[u8]) -> bool {
    let mut input = Input(data);
    let (mode, cpl) = input.pick(&MODES);
    let step = 1 + u64::from(input.u8()) * 4;
    let setting = Setting::read(mode, cpl, &mut input);
    let image = image(mode, &mut input);
    let (ending, hash) = once(&setting, &image, BRANCHES);
    // A place where the engine yielded is no point of the execution: stops move it.
    let step = if ending == Ending::Yielded { BRANCHES } else { step };
    let again = once(&setting, &image, step);
    // One run more at each stop may be the one too many for a guest that hardly moves.
    if again.0 != Ending::Yielded || ending == Ending::Yielded {
        assert_eq!(again, (ending, hash), "every {step} branches");
    }
    ending != Ending::Yielded
}

fn once(setting: &Setting, image: &[u8], step: u64) -> (Ending, u128) {
    let mut machine = rig::machine();
    rig::boot(&mut machine, image);
    setting.enter(&mut machine);
    let mut engine = Impatient::new();
    let ending = rig::run(&mut machine, &mut engine, BRANCHES, step);
    (ending, machine.state_hash())
}

/// The vCPU at the start.
struct Setting {
    mode: Mode,
    cpl: u8,
    rflags: u64,
    cr4: u64,
    gpr: [u64; 16],
}

impl Setting {
    fn read(mode: Mode, cpl: u8, input: &mut Input<'_>) -> Setting {
        let known = flag::OTHER & !flag::VM | flag::STATUS;
        let virtual_8086 = if mode == Mode::V86 { flag::VM } else { 0 };
        let rflags = u64::from(input.u32()) & known | virtual_8086 | flag::FIXED;
        Setting { mode, cpl, rflags, cr4: control(mode, input.u16()), gpr: registers(input) }
    }

    /// Puts a machine that was booted into this state.
    fn enter(&self, machine: &mut Machine) {
        let mut sections = machine.save();
        let mut state: VcpuSaved = sections.restore(0).expect("a machine has a vCPU");
        self.change(&mut state);
        sections.put(Section::encode(0, &state));
        machine.restore(sections).expect("the state is allowed");
    }

    fn change(&self, state: &mut VcpuSaved) {
        let base = u64::from(IMAGE);
        let long = matches!(self.mode, Mode::Long | Mode::Compatibility);
        let paging = long || matches!(self.mode, Mode::Pae | Mode::Legacy);
        let small = matches!(self.mode, Mode::Protected16 | Mode::Real | Mode::V86);
        state.gpr = self.gpr;
        state.rflags = self.rflags;
        state.cpl = self.cpl;
        state.rip = if small { 0 } else { base + at::CODE as u64 };
        state.gpr[gpr::RSP] = if small { 0x5000 } else { base + at::STACK as u64 };
        let (selectors, limits) = self.segments();
        let segment_base = if small { base + at::CODE as u64 } else { 0 };
        for (index, saved) in state.segments.iter_mut().enumerate() {
            let (selector, attributes) = selectors[usize::from(index != 1)];
            *saved = segment(selector, segment_base, limits, attributes);
        }
        state.tr = segment(0x40, base + at::TSS as u64, 0xfff, 0x8b);
        state.gdtr = (base + at::GDT as u64, 0xfff);
        state.idtr = (base + at::IDT as u64, 0xfff);
        let paged = if paging { cr::CR0_PG } else { 0 };
        let protected = if self.mode == Mode::Real { 0 } else { cr::CR0_PE };
        let cr0 = cr::CR0_ET | cr::CR0_NE | cr::CR0_MP | cr::CR0_AM | cr::CR0_WP;
        let table = match self.mode {
            Mode::Pae => at::PDPT,
            Mode::Legacy => at::LEGACY,
            _ => at::PML4,
        };
        let cr3 = base + table as u64;
        state.control = [cr0 | paged | protected, 0, cr3, self.cr4, 7];
        state.pdptrs = [(base + at::PD as u64) | 1, 0, 0, 0];
        state.msrs[0] = if long { 0xd01 } else { 0x800 };
    }

    /// Selector and attributes of CS and of the others, and their limit.
    fn segments(&self) -> ([(u16, u32); 2], u32) {
        let user = self.cpl == 3;
        let rights = |kind: u32| if user { kind | 0x60 } else { kind };
        let selector = |kernel: u16, program: u16| if user { program | 3 } else { kernel };
        match self.mode {
            Mode::Long => {
                let code = (selector(0x08, 0x28), rights(0xa09b));
                ([code, (selector(0x18, 0x38), rights(0xc093))], u32::MAX)
            }
            Mode::Real => ([(0x1000, 0x9b), (0x1000, 0x93)], 0xffff),
            Mode::V86 => ([(0x1000, 0xfb), (0x1000, 0xf3)], 0xffff),
            Mode::Protected16 => ([(0x20, 0x9b), (0x18, 0x93)], 0xffff),
            _ => {
                let code = (selector(0x10, 0x30), rights(0xc09b));
                ([code, (selector(0x18, 0x38), rights(0xc093))], u32::MAX)
            }
        }
    }
}

/// CR4 with what `mode` needs and what `choice` adds.
fn control(mode: Mode, choice: u16) -> u64 {
    const CHOICES: [u64; 12] = [
        cr::CR4_PGE,
        cr::CR4_SMEP,
        cr::CR4_SMAP,
        cr::CR4_UMIP,
        cr::CR4_FSGSBASE,
        cr::CR4_TSD,
        cr::CR4_DE,
        cr::CR4_PSE,
        cr::CR4_VME,
        cr::CR4_PVI,
        cr::CR4_PCE,
        cr::CR4_PCIDE,
    ];
    let chosen = CHOICES.iter().enumerate().filter(|(bit, _)| choice >> bit & 1 != 0);
    let mut value = chosen.fold(0, |all, (_, bit)| all | bit);
    value |= cr::CR4_OSFXSR | cr::CR4_OSXMMEXCPT | cr::CR4_OSXSAVE;
    match mode {
        Mode::Long | Mode::Compatibility => value | cr::CR4_PAE,
        Mode::Pae => (value | cr::CR4_PAE) & !cr::CR4_PCIDE,
        Mode::Legacy => (value | cr::CR4_PSE) & !(cr::CR4_PAE | cr::CR4_PCIDE),
        _ => value & !cr::CR4_PCIDE,
    }
}

/// General registers: small numbers, addresses of data, or anything.
fn registers(input: &mut Input<'_>) -> [u64; 16] {
    let mut seed = input.u32() as u64 | 1 << 40;
    [(); 16].map(|()| {
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        let value = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        match value >> 62 {
            0 => value & 0xff,
            1 => value,
            _ => u64::from(IMAGE) + at::DATA as u64 + (value >> 20 & 0x1fff),
        }
    })
}

/// A saved segment; the type has no name outside its crate.
fn segment<S: for<'b> minicbor::Decode<'b, ()>>(
    selector: u16,
    base: u64,
    limit: u32,
    attributes: u32,
) -> S {
    let bytes = minicbor::to_vec((selector, base, limit, attributes)).expect("into memory");
    minicbor::decode(&bytes).expect("a segment is these four")
}

/// GDT, IDT, TSS, page tables, handler and code.
fn image(mode: Mode, input: &mut Input<'_>) -> Vec<u8> {
    let mut image = vec![0; at::HANDLER];
    // What was not written is a jump to itself, which soon comes to the last branch.
    image.extend([0xeb, 0xfe].into_iter().cycle().take(at::END - at::HANDLER));
    put(&mut image, at::GDT, &descriptors());
    put(&mut image, at::IDT, &gates(mode));
    let stack = u64::from(IMAGE) + at::STACK as u64 - 0x800;
    put_u64(&mut image, at::TSS + 4, stack);
    if !matches!(mode, Mode::Long | Mode::Compatibility) {
        put_u64(&mut image, at::TSS + 8, 0x18);
    }
    (0..7).for_each(|ist| put_u64(&mut image, at::TSS + 36 + 8 * ist, stack - 0x80));
    page_tables(&mut image);
    for _ in 0..input.u8() % (PATCHES_MAX + 1) {
        patch(&mut image, input);
    }
    let handler_len = usize::from(input.u8());
    put(&mut image, at::HANDLER, input.take(handler_len));
    put(&mut image, at::CODE, input.take(at::DATA - at::CODE));
    rig::flat_image(&image[0x1000..])
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_u64(image: &mut [u8], at: usize, value: u64) {
    put(image, at, &value.to_le_bytes());
}

fn descriptors() -> Vec<u8> {
    let tss = u64::from(IMAGE) + at::TSS as u64;
    let table = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_9b10_a000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8900_0000_0fff | (tss & 0xff_ffff) << 16,
        0,
    ];
    table.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect()
}

/// 256 gates to the handler, open to every privilege.
fn gates(mode: Mode) -> Vec<u8> {
    let handler = u64::from(IMAGE) + at::HANDLER as u64;
    let words = |selector: u64, kind: u64| {
        handler & 0xffff | selector << 16 | kind << 40 | (handler >> 16 & 0xffff) << 48
    };
    let gate: Vec<u8> = match mode {
        Mode::Long | Mode::Compatibility => {
            words(0x08, 0xee).to_le_bytes().into_iter().chain([0; 8]).collect()
        }
        // The handler is just above 1 MiB, as seen from segment 0xffff.
        Mode::Real => 0xffff_9010u32.to_le_bytes().to_vec(),
        _ => words(0x10, 0xee).to_le_bytes().to_vec(),
    };
    gate.into_iter().cycle().take(0x1000).collect()
}

/// The first two megabytes onto themselves, in each of the forms.
fn page_tables(image: &mut [u8]) {
    let base = u64::from(IMAGE);
    put_u64(image, at::PML4, (base + at::PDPT as u64) | 7);
    // PAE's top level has no rights; the bits are reserved there and ignored once loaded.
    put_u64(image, at::PDPT, (base + at::PD as u64) | 7);
    put_u64(image, at::PD, (base + at::PT as u64) | 7);
    (0..512).for_each(|page| put_u64(image, at::PT + 8 * page, (page as u64) << 12 | 7));
    put(image, at::LEGACY, &0x87u32.to_le_bytes());
}

/// Overwrites eight bytes of a table, by anything or by an entry that maps the image.
fn patch(image: &mut [u8], input: &mut Input<'_>) {
    let page = at::GDT + usize::from(input.u8() % 8) * 0x1000;
    let offset = usize::from(input.u16()) % 0xff9;
    if input.u8() & 1 == 0 {
        put_u64(image, page + offset, input.u64());
    } else {
        let (frame, rights) = (u64::from(input.u8() % 16), u64::from(input.u16()));
        let entry = (u64::from(IMAGE) + frame * 0x1000) | (rights & 0xfff) | (rights >> 15) << 63;
        put_u64(image, (page + offset) & !7, entry);
    }
}
