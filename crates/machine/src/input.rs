//! The one way in: an input takes effect at the current execution point (mechanisms L5, F12).

use devices::pci::Delivery;
use journal::Input;
use types::{ExecutionPoint, Gpa, VirtualTime};

use crate::board::Id;
use crate::machine::Machine;
use crate::run::Outside;
use crate::spec::console_port;

/// Sees inputs as they enter: the point, virtual time before it, and what.
pub type Observer = Box<dyn FnMut(ExecutionPoint, VirtualTime, &Input) + Send>;

impl Machine {
    /// Lets something in from outside, at the current execution point, and lets happen what
    /// follows from it there.
    ///
    /// Input for a device that the machine does not have is ignored.
    pub fn inject(&mut self, outside: &mut dyn Outside, input: Input) {
        let now = self.now();
        if let Some(observer) = &mut self.observer {
            observer(self.vcpu.point(), now, &input);
        }
        match input {
            Input::ClockAnchor { advance_ns, rate_millins } => {
                let at = now.saturating_add_ns(advance_ns);
                self.board.clock.anchor(self.vcpu.branches, at, rate_millins);
            }
            Input::Console { port, bytes } => self.receive_console(port, bytes, now),
            Input::NetReceive { nic, frame } => {
                self.deliver_to_nic(nic, Delivery::Frame(frame), now);
            }
            Input::NetLink { nic, up } => self.deliver_to_nic(nic, Delivery::Link(up), now),
            Input::PowerButton => self.board.press_power_button(&mut self.ram, now),
            Input::Generation { id } => {
                self.set_generation(id);
                if let Some(slot) = self.board.rng_slot {
                    let delivery = Delivery::Generation(id);
                    self.board
                        .call_pci(&mut self.ram, now, |pci, cx| pci.deliver(cx, slot, delivery));
                }
                self.board.raise_gpe(&mut self.ram, now, boot::GENERATION_EVENT);
            }
            Input::NetAddress { nic, mac } => {
                if let Some(spec) = self.spec.nics.get_mut(nic as usize) {
                    spec.mac = mac;
                }
                self.deliver_to_nic(nic, Delivery::Address(mac), now);
            }
        }
        self.settle(outside);
    }

    /// From now on `observer` sees every input with its execution point, before it takes effect
    /// (mechanism L1). There is no other way in, so nothing is missed.
    pub fn observe(&mut self, observer: Option<Observer>) {
        self.observer = observer;
    }

    fn receive_console(&mut self, port: u32, bytes: Vec<u8>, now: VirtualTime) {
        let id = match port {
            console_port::COM1 => Id::Com1,
            console_port::COM2 => Id::Com2,
            _ => {
                if let Some(slot) = self.board.console_slot {
                    let delivery = Delivery::Console(bytes);
                    self.board
                        .call_pci(&mut self.ram, now, |pci, cx| pci.deliver(cx, slot, delivery));
                }
                return;
            }
        };
        self.board.call(id, &mut self.ram, now, |device, cx| device.receive(cx, &bytes));
    }

    fn deliver_to_nic(&mut self, nic: u32, delivery: Delivery, now: VirtualTime) {
        if let Some(&slot) = self.board.nic_slots.get(nic as usize) {
            self.board.call_pci(&mut self.ram, now, |pci, cx| pci.deliver(cx, slot, delivery));
        }
    }

    fn set_generation(&mut self, id: [u8; 16]) {
        self.ram.write(Gpa(boot::GENERATION), &id).expect("base memory is there");
    }

    /// The VM generation id that the guest sees.
    pub fn generation(&self) -> [u8; 16] {
        let mut id = [0; 16];
        self.ram.read(Gpa(boot::GENERATION), &mut id).expect("base memory is there");
        id
    }

    /// Frames that network card `nic` can take in before some would be lost.
    pub fn frame_room(&self, nic: u32) -> usize {
        let slot = self.board.nic_slots.get(nic as usize);
        slot.map_or(0, |&slot| self.board.pci.frame_room(slot))
    }

    /// Bytes that console `port` can take in before some would be lost.
    pub fn receive_room(&self, port: u32) -> usize {
        self.board.receive_room(port as usize)
    }
}
