//! The local APIC by subject: modes, priorities, timer, messages, saved state.

use super::regs::offset;
use super::*;

const X2APIC: u64 = 0xfee0_0d00;

fn enabled() -> Lapic {
    let mut lapic = Lapic::new(0);
    lapic.set_up_virtual_wire();
    lapic
}

fn x2apic() -> Lapic {
    let mut lapic = enabled();
    lapic.set_base_msr(X2APIC).unwrap();
    lapic
}

fn write(lapic: &mut Lapic, offset: u32, value: u32) -> LapicEffects {
    lapic.mmio_write(VirtualTime(0), offset, value)
}

fn eoi(lapic: &mut Lapic) -> Option<u8> {
    write(lapic, offset::EOI, 0).eoi
}

#[test]
fn base_transitions_are_those_of_the_manual() {
    let (off, xapic, x2apic, invalid) = (0xfee0_0100, 0xfee0_0900, X2APIC, 0xfee0_0500);
    for (from, to, allowed) in [
        (off, xapic, true),
        (off, x2apic, false),
        (xapic, x2apic, true),
        (xapic, off, true),
        (x2apic, xapic, false),
        (x2apic, off, true),
        (off, invalid, false),
        (xapic, invalid, false),
        (x2apic, invalid, false),
        (xapic, xapic | 1, false),
        (xapic, xapic | 1 << crate::PHYSICAL_BITS, false),
        (xapic, 0x1234_5900, true),
    ] {
        let mut lapic = Lapic { base: from, ..Lapic::new(0) };
        assert_eq!(lapic.set_base_msr(to).is_ok(), allowed, "{from:#x} to {to:#x}");
        assert_eq!(lapic.base_msr(), if allowed { to } else { from });
    }
}

#[test]
fn registers_after_reset_read_as_the_manual_says() {
    let mut lapic = Lapic::new(3);
    for (offset, value) in [
        (offset::ID, 3 << 24),
        (offset::VERSION, 0x50014),
        (offset::TPR, 0),
        (offset::DFR, u32::MAX),
        (offset::SVR, 0xff),
        (offset::LVT, 0x10000),
        (offset::LVT_LAST, 0x10000),
        (offset::CURRENT_COUNT, 0),
    ] {
        assert_eq!(lapic.mmio_read(VirtualTime(0), offset), value, "{offset:#x}");
    }
    assert_eq!(lapic.base_msr(), 0xfee0_0800);
    assert_eq!(Lapic::new(0).base_msr(), 0xfee0_0900);
}

#[test]
fn page_is_claimed_in_xapic_mode_only() {
    let mut lapic = enabled();
    assert!(lapic.claims(Gpa(0xfee0_0ff0)) && !lapic.claims(Gpa(0xfee0_1000)));
    lapic.set_base_msr(X2APIC).unwrap();
    assert!(!lapic.claims(Gpa(0xfee0_0ff0)));
}

#[test]
fn higher_class_interrupts_lower_one() {
    let mut lapic = enabled();
    lapic.accept(0x31, false);
    lapic.accept(0x42, false);
    assert_eq!(lapic.acknowledge(), Some(0x42));
    assert_eq!((lapic.ppr(), lapic.pending_vector()), (0x40, None));
    lapic.accept(0x4f, false);
    assert_eq!(lapic.pending_vector(), None, "same class");
    lapic.accept(0x50, false);
    assert_eq!(lapic.acknowledge(), Some(0x50));
    for expected in [0x4f, 0x31] {
        while lapic.pending_vector().is_none() {
            assert_eq!(eoi(&mut lapic), None);
        }
        assert_eq!(lapic.acknowledge(), Some(expected));
    }
}

#[test]
fn task_priority_holds_interrupts_back() {
    for (tpr, pending) in [(0x20, true), (0x2f, true), (0x30, false), (0xff, false)] {
        let mut lapic = enabled();
        write(&mut lapic, offset::TPR, tpr);
        lapic.accept(0x35, false);
        assert_eq!(lapic.pending_vector().is_some(), pending, "{tpr:#x}");
        assert_eq!(u32::from(lapic.cr8()), tpr >> 4);
        lapic.set_cr8(2);
        assert_eq!(lapic.pending_vector(), Some(0x35));
    }
}

#[test]
fn eoi_of_level_triggered_vector_is_broadcast() {
    for (level, expected) in [(true, Some(0x41)), (false, None)] {
        let mut lapic = enabled();
        lapic.accept(0x41, level);
        lapic.acknowledge();
        assert_eq!(eoi(&mut lapic), expected);
        assert_eq!(eoi(&mut lapic), None, "nothing in service");
    }
}

#[test]
fn software_disabled_accepts_nothing_and_masks_the_table() {
    let mut lapic = enabled();
    lapic.accept(0x41, false);
    write(&mut lapic, offset::SVR, 0xff);
    lapic.accept(0x51, false);
    assert_eq!(lapic.pending_vector(), Some(0x41));
    assert!(!lapic.pic_accepted());
    write(&mut lapic, offset::LVT + 0x30, 0x700);
    assert_eq!(lapic.mmio_read(VirtualTime(0), offset::LVT + 0x30), 0x10700);
    assert_eq!(lapic.drive_lint(1, true), None);
}

#[test]
fn vector_below_16_is_an_error() {
    let mut lapic = enabled();
    write(&mut lapic, offset::LVT_LAST, 0xfe);
    lapic.accept(0x0f, false);
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    assert_eq!(lapic.mmio_read(VirtualTime(0), offset::ESR), 0);
    write(&mut lapic, offset::ESR, 0);
    assert_eq!(lapic.mmio_read(VirtualTime(0), offset::ESR), 0x40);
    write(&mut lapic, offset::ESR, 0);
    assert_eq!(lapic.mmio_read(VirtualTime(0), offset::ESR), 0);
}

#[test]
fn one_shot_timer_counts_down_and_fires_once() {
    for (divide, shift) in [(0x0, 1), (0x3, 4), (0xa, 7), (0xb, 0)] {
        let mut lapic = enabled();
        write(&mut lapic, offset::DIVIDE, divide);
        write(&mut lapic, offset::LVT, 0xec);
        lapic.mmio_write(VirtualTime(100), offset::INITIAL_COUNT, 1000);
        let at = VirtualTime(100 + (1000 << shift));
        assert_eq!(lapic.timer_deadline(), Some(at));
        let half = VirtualTime(100 + (500 << shift));
        assert_eq!(lapic.mmio_read(half, offset::CURRENT_COUNT), 500);
        lapic.timer_fired(half);
        assert_eq!(lapic.pending_vector(), None);
        lapic.timer_fired(at);
        assert_eq!(lapic.acknowledge(), Some(0xec));
        assert_eq!(lapic.timer_deadline(), None);
        assert_eq!(lapic.mmio_read(at, offset::CURRENT_COUNT), 0);
    }
}

#[test]
fn periodic_timer_goes_on_and_merges_missed_periods() {
    let mut lapic = enabled();
    write(&mut lapic, offset::DIVIDE, 0xb);
    write(&mut lapic, offset::LVT, 0x200ec);
    write(&mut lapic, offset::INITIAL_COUNT, 1000);
    lapic.timer_fired(VirtualTime(1000));
    assert_eq!(lapic.acknowledge(), Some(0xec));
    eoi(&mut lapic);
    assert_eq!(lapic.mmio_read(VirtualTime(1250), offset::CURRENT_COUNT), 750);
    lapic.timer_fired(VirtualTime(5100));
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.timer_deadline(), Some(VirtualTime(6000)));
    // To one-shot: the count under way is the last; back to periodic does not restart it.
    lapic.mmio_write(VirtualTime(5500), offset::LVT, 0xec);
    assert_eq!(lapic.mmio_read(VirtualTime(5600), offset::CURRENT_COUNT), 400);
    lapic.mmio_write(VirtualTime(7000), offset::LVT, 0x200ec);
    assert_eq!(lapic.mmio_read(VirtualTime(7000), offset::CURRENT_COUNT), 0);
}

#[test]
fn masked_periodic_timer_needs_no_wake_up_but_counts() {
    let mut lapic = enabled();
    write(&mut lapic, offset::DIVIDE, 0xb);
    write(&mut lapic, offset::LVT, 0x300ec);
    write(&mut lapic, offset::INITIAL_COUNT, 1000);
    assert_eq!(lapic.timer_deadline(), None);
    assert_eq!(lapic.mmio_read(VirtualTime(2300), offset::CURRENT_COUNT), 700);
    lapic.mmio_write(VirtualTime(2300), offset::LVT, 0x200ec);
    assert_eq!(lapic.pending_vector(), None);
    assert_eq!(lapic.timer_deadline(), Some(VirtualTime(3000)));
}

#[test]
fn divide_change_keeps_the_count() {
    let mut lapic = enabled();
    write(&mut lapic, offset::DIVIDE, 0xb);
    write(&mut lapic, offset::LVT, 0xec);
    write(&mut lapic, offset::INITIAL_COUNT, 1000);
    lapic.mmio_write(VirtualTime(400), offset::DIVIDE, 0x0);
    assert_eq!(lapic.mmio_read(VirtualTime(400), offset::CURRENT_COUNT), 600);
    assert_eq!(lapic.timer_deadline(), Some(VirtualTime(400 + 1200)));
}

#[test]
fn tsc_deadline_fires_at_the_guests_tsc() {
    let mut lapic = x2apic();
    lapic.set_tsc_deadline(VirtualTime(10), 5000, 1000);
    assert_eq!(lapic.tsc_deadline(), 0, "not in that mode");
    lapic.msr_write(VirtualTime(10), 0x32, 0x400ec).unwrap();
    lapic.set_tsc_deadline(VirtualTime(10), 5000, 1000);
    assert_eq!((lapic.tsc_deadline(), lapic.timer_deadline()), (5000, Some(VirtualTime(4000))));
    lapic.tsc_changed(VirtualTime(10), 2000);
    assert_eq!(lapic.timer_deadline(), Some(VirtualTime(3000)));
    lapic.timer_fired(VirtualTime(3000));
    assert_eq!((lapic.tsc_deadline(), lapic.acknowledge()), (0, Some(0xec)));
    lapic.set_tsc_deadline(VirtualTime(4000), 5000, 2000);
    assert_eq!(lapic.pending_vector(), None, "same class in service");
    assert_eq!(lapic.tsc_deadline(), 0, "in the past: fires at once");
    lapic.set_tsc_deadline(VirtualTime(4000), u64::MAX, 0u64.wrapping_sub(5000));
    lapic.msr_write(VirtualTime(4000), 0x32, 0xec).unwrap();
    assert_eq!((lapic.tsc_deadline(), lapic.timer_deadline()), (0, None));
}

#[test]
fn msr_access_faults_as_the_manual_says() {
    let mut lapic = x2apic();
    let now = VirtualTime(0);
    for (register, value, allowed) in [
        (0x08, 0xff, true),
        (0x08, 0x100, false),
        (0x0b, 0, true),
        (0x0b, 1, false),
        (0x02, 0, false),
        (0x0d, 0, false),
        (0x0e, 0, false),
        (0x0f, 0x1ff, true),
        (0x28, 0, true),
        (0x28, 1, false),
        (0x2f, 0, false),
        (0x30, 0x0000_0001_0000_00fb, true),
        (0x30, 0x0000_0001_0002_00fb, false),
        (0x31, 0, false),
        (0x32, 0x610ec, true),
        (0x32, 0x8_0000, false),
        (0x38, 0xffff_ffff, true),
        (0x38, 0x1_0000_0000, false),
        (0x39, 0, false),
        (0x3e, 0xb, true),
        (0x3e, 0x4, false),
        (0x3f, 0xff, true),
        (0x3f, 0x100, false),
        (0x40, 0, false),
    ] {
        let result = lapic.msr_write(now, register, value);
        assert_eq!(result.is_ok(), allowed, "{register:#x} = {value:#x}");
    }
    for (register, allowed) in
        [(0x02, true), (0x0b, false), (0x0d, true), (0x0e, false), (0x31, false), (0x3f, false)]
    {
        assert_eq!(lapic.msr_read(now, register).is_ok(), allowed, "{register:#x}");
    }
    assert_eq!(enabled().msr_read(now, 0x02), Err(GeneralProtection), "xAPIC mode");
}

#[test]
fn self_ipi_is_requested() {
    let mut lapic = x2apic();
    lapic.msr_write(VirtualTime(0), 0x3f, 0x77).unwrap();
    assert_eq!(lapic.acknowledge(), Some(0x77));
}

#[test]
fn icr_reaches_whom_it_names() {
    // High half, low half; whether the sender itself is interrupted, whether others may be.
    for (high, low, mine, others) in [
        (0, 0x0_40f3, true, false),
        (0, 0x4_40f3, true, false),
        (0, 0x8_40f3, true, true),
        (0, 0xc_40f3, false, true),
        (0x0100_0000, 0x0_40f3, false, true),
        (0xff00_0000, 0x0_40f3, true, true),
        (0x0100_0000, 0x0_48f3, true, true),
        (0x0200_0000, 0x0_48f3, false, true),
        (0x0100_0000, 0x0_49f3, true, false),
    ] {
        let mut lapic = enabled();
        write(&mut lapic, offset::LDR, 0x0100_0000);
        write(&mut lapic, offset::ICR_HIGH, high);
        let effects = write(&mut lapic, offset::ICR, low);
        assert_eq!(lapic.pending_vector().is_some(), mine, "{high:#x} {low:#x}");
        assert_eq!(effects.ipi.is_some(), others, "{high:#x} {low:#x}");
    }
}

#[test]
fn icr_modes_signal_the_processor() {
    for (low, expected) in [
        (0x0_4400, Some(Signal::Nmi)),
        (0x0_4500, Some(Signal::Init)),
        (0x0_8500, None),
        (0x0_4608, Some(Signal::Startup(8))),
        (0x0_4300, None),
        (0x0_4200, None),
        (0x0_4005, None),
    ] {
        let mut lapic = enabled();
        assert_eq!(write(&mut lapic, offset::ICR, low).signal, expected, "{low:#x}");
    }
}

#[test]
fn logical_destinations_match_by_model() {
    let message = |destination| ApicMessage {
        target: Target::Logical(destination),
        mode: DeliveryMode::Fixed,
        vector: 0x40,
        level: false,
    };
    for (dfr, destination, expected) in [
        (0xffff_ffff, 0x32, true),
        (0xffff_ffff, 0x0d, false),
        (0x0fff_ffff, 0x22, true),
        (0x0fff_ffff, 0x32, false),
        (0x0fff_ffff, 0xf2, true),
        (0x0fff_ffff, 0x2d, false),
    ] {
        let mut lapic = enabled();
        write(&mut lapic, offset::LDR, 0x2200_0000);
        write(&mut lapic, offset::DFR, dfr);
        assert_eq!(lapic.is_target(&message(destination)), expected, "{dfr:x} {destination:x}");
    }
    let mut lapic = Lapic { base: X2APIC, ..Lapic::new(0x25) };
    assert_eq!(lapic.msr_read(VirtualTime(0), 0x0d), Ok(0x0002_0020));
    for (destination, expected) in
        [(0x0002_0020, true), (0x0002_0010, false), (0x0001_0020, false), (u32::MAX, true)]
    {
        assert_eq!(lapic.is_target(&message(destination)), expected, "{destination:#x}");
    }
}

#[test]
fn msi_is_understood() {
    assert_eq!(
        ApicMessage::from_msi(0xfee0_3004, 0xc141),
        Some(ApicMessage {
            target: Target::Logical(3),
            mode: DeliveryMode::LowestPriority,
            vector: 0x41,
            level: true,
        })
    );
    let everyone = ApicMessage::from_msi(0xfeef_f000, 0x41).unwrap();
    assert_eq!(everyone.target, Target::Physical(u32::MAX));
    assert_eq!(ApicMessage::from_msi(0xfed0_0000, 0x41), None);
    assert_eq!(ApicMessage::from_msi(0xfee0_0000, 0x341), None);
}

#[test]
fn pic_is_accepted_through_lint0_or_without_an_apic() {
    let mut lapic = Lapic::new(0);
    assert!(!lapic.pic_accepted());
    lapic.set_up_virtual_wire();
    assert!(lapic.pic_accepted());
    write(&mut lapic, offset::LVT + 0x30, 0x10700);
    assert!(!lapic.pic_accepted());
    lapic.set_base_msr(0xfee0_0100).unwrap();
    assert!(lapic.pic_accepted());
}

#[test]
fn lint_pins_do_as_their_entries_say() {
    let mut lapic = enabled();
    assert_eq!(lapic.drive_lint(1, true), Some(Signal::Nmi));
    assert_eq!(lapic.drive_lint(1, true), None, "no edge");
    assert_eq!(lapic.drive_lint(0, true), None);
    assert_eq!(lapic.pending_vector(), None, "the PIC's");
    lapic.drive_lint(0, false);
    write(&mut lapic, offset::LVT + 0x30, 0x30);
    lapic.drive_lint(0, true);
    assert_eq!(lapic.pending_vector(), Some(0x30));
}

/// xorshift64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn poke(lapic: &mut Lapic, now: VirtualTime, what: u64, value: u64) {
    let register = (what >> 8) as u32 & 0x3f;
    match what & 15 {
        0..4 => _ = lapic.mmio_write(now, register << 4, value as u32),
        4..6 => _ = lapic.mmio_read(now, (what >> 8) as u32 & 0xfff),
        6..8 => _ = lapic.msr_write(now, register, value >> (value & 63)),
        8 => _ = lapic.msr_read(now, register),
        9 => lapic.set_tsc_deadline(now, value >> (value & 63), what),
        10 => lapic.timer_fired(now),
        11 => {
            _ = ApicMessage::from_msi(0xfee0_0000 | value & 0xf_ffff, (value >> 20) as u32)
                .and_then(|message| lapic.deliver(&message))
        }
        12 => _ = lapic.drive_lint(value as u8, value & 2 != 0),
        13 => _ = lapic.acknowledge(),
        14 if value & 31 == 0 => _ = lapic.set_base_msr(0xfee0_0000 | value >> 20 & 0xd00),
        _ => lapic.set_cr8(value as u8),
    }
    lapic.timer_deadline();
}

#[test]
fn hostile_guest_is_survived_and_saved_state_is_complete() {
    let mut noise = Noise(10);
    let (mut lapic, mut now) = (enabled(), VirtualTime(0));
    for step in 0..100_000 {
        now = now.saturating_add_ns(noise.next() >> (20 + noise.next() % 44));
        poke(&mut lapic, now, noise.next(), noise.next());
        if step % 1000 == 0 {
            let mut twin = Lapic::new(0);
            twin.restore(lapic.save()).unwrap();
            assert_eq!(twin, lapic);
            lapic = twin;
        }
    }
}

#[test]
fn saved_state_of_another_processor_or_mode_is_refused() {
    let mut lapic = Lapic::new(0);
    assert!(lapic.restore(Lapic::new(1).save()).is_err());
    assert!(lapic.restore(LapicSaved { base: 0xfee0_0400, ..lapic.save() }).is_err());
}
