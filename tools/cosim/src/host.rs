//! Ground truth: the case's instruction at its own address in this very process, single-stepped.
//!
//! IRETQ enters the instruction with the whole state loaded and TF set, in 64-bit or
//! compatibility mode. Whatever comes next, a trap or a fault, is a signal whose frame has the
//! whole state after it; the handler copies the frame and returns into [`HostExecutor::execute`].
//! One process runs one executor, as the addresses are fixed and the handler's state is global.

use std::arch::global_asm;
use std::io;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use cpu::{Registers, flag, gpr};
use libc::{c_int, c_void};

use crate::{Case, Executor, Fault, Outcome, layout};

const CS_64: u64 = 0x33;
const CS_32: u64 = 0x23;
const SS: u64 = 0x2b;
const XSAVE_SIZE: usize = 832;
const YMM_HIGH: usize = 576;
const SIGNALS: [c_int; 5] =
    [libc::SIGTRAP, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS];

/// What the launcher loads: a frame for IRETQ, the GPRs, and an XSAVE area.
#[repr(C, align(64))]
struct Launch {
    xsave: [u8; XSAVE_SIZE],
    /// RIP, CS, RFLAGS, RSP, SS.
    frame: [u64; 5],
    gpr: [u64; 16],
}

/// A RIP that no instruction leads to, as it is not canonical.
const NOWHERE: u64 = 0x8000_1234_0000_0000;

/// What the handler saw.
#[repr(C, align(64))]
struct Caught {
    xsave: [u8; XSAVE_SIZE],
    gregs: [i64; 23],
    resume: u64,
    /// While a repeated instruction stays at this address, it is stepped on.
    repeat_at: u64,
}

static mut CAUGHT: Caught =
    Caught { xsave: [0; XSAVE_SIZE], gregs: [0; 23], resume: 0, repeat_at: 0 };

global_asm!(
    ".global cosim_launch",
    "cosim_launch:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + cosim_host_rsp], rsp",
    "mov eax, 7", "xor edx, edx",
    "xrstor64 [rdi]",
    "push qword ptr [rdi + {frame} + 32]",
    "push qword ptr [rdi + {frame} + 24]",
    "push qword ptr [rdi + {frame} + 16]",
    "push qword ptr [rdi + {frame} + 8]",
    "push qword ptr [rdi + {frame}]",
    "mov rax, [rdi + {gpr}]", "mov rcx, [rdi + {gpr} + 8]",
    "mov rdx, [rdi + {gpr} + 16]", "mov rbx, [rdi + {gpr} + 24]",
    "mov rbp, [rdi + {gpr} + 40]", "mov rsi, [rdi + {gpr} + 48]",
    "mov r8, [rdi + {gpr} + 64]", "mov r9, [rdi + {gpr} + 72]",
    "mov r10, [rdi + {gpr} + 80]", "mov r11, [rdi + {gpr} + 88]",
    "mov r12, [rdi + {gpr} + 96]", "mov r13, [rdi + {gpr} + 104]",
    "mov r14, [rdi + {gpr} + 112]", "mov r15, [rdi + {gpr} + 120]",
    "mov rdi, [rdi + {gpr} + 56]",
    "iretq",
    ".global cosim_resume",
    "cosim_resume:",
    "mov rsp, [rip + cosim_host_rsp]",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    // Compiled code does not expect AC, nor IRETQ NT; sigreturn would not clear NT.
    "cosim_handler:",
    "pushfq", "and dword ptr [rsp], 0xfffbbfff", "popfq",
    "jmp {handler}",
    ".data", ".balign 8", "cosim_host_rsp: .quad 0", ".text",
    frame = const offset_of!(Launch, frame),
    gpr = const offset_of!(Launch, gpr),
    handler = sym handler,
);

unsafe extern "sysv64" {
    fn cosim_launch(launch: *const Launch);
    fn cosim_resume();
    fn cosim_handler();
}

/// Runs cases on the host CPU.
pub struct HostExecutor {
    launch: Box<Launch>,
    code: *mut u8,
    /// The writable view of data, all of it.
    data: *mut u8,
    _stack: Vec<u8>,
}

fn map(address: u64, size: u64, protection: c_int, fd: c_int, offset: u64) -> Result<*mut u8> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE refuses to replace an existing one.
    let mapped = unsafe {
        libc::mmap(
            address as *mut c_void,
            size as usize,
            protection,
            libc::MAP_SHARED | libc::MAP_POPULATE | fixed,
            fd,
            offset as libc::off_t,
        )
    };
    ensure!(mapped != libc::MAP_FAILED, "cannot map {address:#x}: {}", io::Error::last_os_error());
    Ok(mapped.cast())
}

impl HostExecutor {
    /// Maps code and data and takes the signals.
    pub fn new() -> Result<HostExecutor> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        ensure!(!TAKEN.swap(true, Ordering::Relaxed), "one host executor for each process");
        let size = layout::CODE_SIZE + layout::DATA_SIZE;
        // SAFETY: no precondition; the name is a C string.
        let fd = unsafe { libc::memfd_create(c"cosim".as_ptr(), libc::MFD_CLOEXEC) };
        ensure!(fd >= 0, "no memory file: {}", io::Error::last_os_error());
        // SAFETY: an open descriptor.
        let grown = unsafe { libc::ftruncate(fd, size as libc::off_t) };
        ensure!(grown == 0, "cannot grow the memory file: {}", io::Error::last_os_error());
        let (read, write) = (libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE);
        let code = map(0, layout::CODE_SIZE, write, fd, 0)?;
        let data = map(0, layout::DATA_SIZE, write, fd, layout::CODE_SIZE)?;
        map(layout::CODE, layout::CODE_SIZE, read | libc::PROT_EXEC, fd, 0)?;
        map(layout::DATA, layout::WRITABLE_SIZE, write, fd, layout::CODE_SIZE)?;
        map(
            layout::DATA + layout::WRITABLE_SIZE,
            layout::DATA_SIZE - layout::WRITABLE_SIZE,
            read,
            fd,
            layout::CODE_SIZE + layout::WRITABLE_SIZE,
        )?;
        let stack = take_signals().context("cannot take the signals of exceptions")?;
        load_data_segments();
        let launch = Launch { xsave: [0; XSAVE_SIZE], frame: [0; 5], gpr: [0; 16] };
        Ok(HostExecutor { launch: Box::new(launch), code, data, _stack: stack })
    }
}

/// In compatibility mode DS and ES must hold a selector; in 64-bit mode they do not matter.
fn load_data_segments() {
    // SAFETY: user data selectors of Linux; 64-bit code does not use them.
    unsafe {
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) SS, options(nomem, nostack))
    };
}

fn take_signals() -> io::Result<Vec<u8>> {
    let mut stack = vec![0u8; 1 << 17];
    let alternate =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack outlives the executor; the handler keeps to the convention of SA_SIGINFO.
    unsafe {
        if libc::sigaltstack(&alternate, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = cosim_handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in SIGNALS {
            let kept = &mut PREVIOUS[signal as usize];
            if libc::sigaction(signal, &action, &raw mut *kept) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(stack)
}

static mut PREVIOUS: [libc::sigaction; 16] =
    // SAFETY: an all-zero sigaction is the default action.
    unsafe { std::mem::zeroed() };

/// Whether the frame is of an instruction under test: entered by the launcher and not yet left.
static RUNNING: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn handler(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's frame is valid; the handler runs on the one thread that launches, so
    // nothing else touches the statics.
    unsafe {
        if !RUNNING.load(Ordering::Relaxed) {
            let previous = PREVIOUS[signal as usize];
            if previous.sa_sigaction == libc::SIG_DFL || previous.sa_flags & libc::SA_SIGINFO == 0 {
                libc::sigaction(signal, &raw const PREVIOUS[signal as usize], ptr::null_mut());
                return;
            }
            let next: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                std::mem::transmute(previous.sa_sigaction);
            return next(signal, info, context);
        }
        let context = &mut *context.cast::<libc::ucontext_t>();
        let pointer = &raw mut CAUGHT;
        let caught = &mut *pointer;
        let machine = &mut context.uc_mcontext;
        let stepped = machine.gregs[libc::REG_TRAPNO as usize] == 1;
        if stepped && machine.gregs[libc::REG_RIP as usize] as u64 == caught.repeat_at {
            return;
        }
        caught.gregs = machine.gregs;
        let area = machine.fpregs.cast::<u8>();
        ptr::copy_nonoverlapping(area, caught.xsave.as_mut_ptr(), XSAVE_SIZE);
        // Back to the launcher with the state that compiled code expects.
        area.cast::<u16>().write_unaligned(0x37f);
        area.add(2).cast::<u32>().write_unaligned(0);
        area.add(24).cast::<u32>().write_unaligned(0x1f80);
        machine.gregs[libc::REG_RIP as usize] = caught.resume as i64;
        machine.gregs[libc::REG_EFL as usize] = 0x202;
        machine.gregs[libc::REG_CSGSFS as usize] &= !0xffff;
        machine.gregs[libc::REG_CSGSFS as usize] |= CS_64 as i64;
        RUNNING.store(false, Ordering::Relaxed);
    }
}

impl Launch {
    fn load(&mut self, case: &Case) {
        let registers = &case.registers;
        self.xsave[..512].copy_from_slice(&registers.fx.0);
        self.xsave[512..].fill(0);
        self.xsave[512] = 7;
        for (number, value) in registers.ymm.iter().enumerate() {
            let (low, high) = (160 + number * 16, YMM_HIGH + number * 16);
            for (lane, word) in value.iter().enumerate() {
                let at = if lane < 2 { low } else { high } + lane % 2 * 8;
                self.xsave[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
        }
        self.gpr.copy_from_slice(&registers.gpr[..16]);
        let code_selector = if case.bitness == 64 { CS_64 } else { CS_32 };
        let flags = (registers.rflags() & !flag::OTHER)
            | (registers.rflags() & (flag::DF | flag::AC | flag::ID | flag::NT))
            | flag::TF
            | flag::IF;
        self.frame = [registers.rip(), code_selector, flags, registers.gpr[gpr::RSP], SS];
    }
}

/// Registers in the frame's order (ucontext of x86-64 Linux) for each in the manual's order.
const FRAME_ORDER: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

impl Caught {
    fn registers(&self) -> Registers {
        let mut registers = Registers::reset();
        for (number, index) in FRAME_ORDER.into_iter().enumerate() {
            registers.gpr[number] = self.gregs[index as usize] as u64;
        }
        registers.gpr[gpr::RIP] = self.gregs[libc::REG_RIP as usize] as u64;
        let flags = self.gregs[libc::REG_EFL as usize] as u64;
        registers.set_rflags(flags & !(flag::TF | flag::RF));
        let present = self.xsave[512];
        let area = &mut registers.fx.0;
        area[24..28].copy_from_slice(&self.xsave[24..28]);
        if present & 1 != 0 {
            area[..6].copy_from_slice(&self.xsave[..6]);
            area[32..160].copy_from_slice(&self.xsave[32..160]);
        }
        for (number, value) in registers.ymm.iter_mut().enumerate() {
            for (lane, word) in value.iter_mut().enumerate() {
                let base = if lane < 2 { 160 } else { YMM_HIGH } + number * 16 + lane % 2 * 8;
                if present & (if lane < 2 { 2 } else { 4 }) != 0 {
                    let bytes = self.xsave[base..base + 8].try_into().expect("eight bytes");
                    *word = u64::from_le_bytes(bytes);
                }
            }
        }
        registers
    }

    fn fault(&self) -> Option<Fault> {
        let vector = self.gregs[libc::REG_TRAPNO as usize] as u8;
        if vector == 1 {
            return None;
        }
        let is_page_fault = vector == 14;
        let has_code = matches!(vector, 10..=14 | 17);
        let error_code = if has_code { self.gregs[libc::REG_ERR as usize] as u32 } else { 0 };
        let address = if is_page_fault { self.gregs[libc::REG_CR2 as usize] as u64 } else { 0 };
        Some(Fault { vector, error_code, address })
    }
}

impl Executor for HostExecutor {
    fn name(&self) -> &'static str {
        "host"
    }

    fn execute(&mut self, case: &Case) -> Option<Outcome> {
        let start = (case.registers.rip() - layout::CODE) as usize;
        assert!(start + case.bytes.len() <= layout::CODE_SIZE as usize);
        let data = case.data();
        self.launch.load(case);
        let instruction = case.instruction();
        // Gathers, too, can trap between elements.
        let repeats = instruction.is_vsib()
            || instruction.is_string_instruction()
                && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
        // SAFETY: code and data are mapped writable with these sizes and nothing else refers to
        // them. The launcher enters the instruction with TF set: it is left by a trap or a fault,
        // which the handler turns into a return from the launcher. It can write to data only,
        // unless it computes an address of this process: generated ones do not.
        unsafe {
            ptr::copy_nonoverlapping(case.bytes.as_ptr(), self.code.add(start), case.bytes.len());
            ptr::copy_nonoverlapping(data.as_ptr(), self.data, data.len());
            let caught = &raw mut CAUGHT;
            (*caught).resume = cosim_resume as *const () as u64;
            (*caught).repeat_at = if repeats { case.registers.rip() } else { NOWHERE };
            RUNNING.store(true, Ordering::SeqCst);
            cosim_launch(&raw const *self.launch);
            let mut after = data;
            ptr::copy_nonoverlapping(self.data, after.as_mut_ptr(), after.len());
            let caught = &*caught;
            Some(Outcome { registers: caught.registers(), data: after, fault: caught.fault() })
        }
    }
}
