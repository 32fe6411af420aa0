//! The stop: the machine's state goes to memory, its RAM becomes copy-on-write (mechanism C3).

use std::collections::BTreeMap;

use journal::DiskOperation;
use machine::{Machine, MachineSpec, Outside};
use memory::{CowGuest, Epoch};
use saved::Sections;
use types::{ExecutionPoint, VirtualTime};

/// A machine at one execution point, but for its RAM and disks, which others keep.
#[derive(Clone, Debug)]
pub struct Captured {
    /// What it is.
    pub spec: MachineSpec,
    /// Everything but RAM.
    pub sections: Sections,
    /// Where it was.
    pub point: ExecutionPoint,
    /// Its virtual time.
    pub virtual_time: VirtualTime,
    /// The epoch that began then: pages written in it or after are what has changed since.
    pub epoch: Epoch,
    /// Reads in flight, by disk.
    pub reads: BTreeMap<u32, Vec<u64>>,
}

/// Captures `machine`, which goes on as if nothing had happened. The time it takes does not depend
/// on the amount of RAM. `guest` is one side of an instant prepared from the machine's pages.
pub fn capture(machine: &mut Machine, outside: &mut dyn Outside, guest: CowGuest) -> Captured {
    machine.settle(outside);
    let mut reads: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for (disk, request) in machine.outstanding() {
        if matches!(request.operation, DiskOperation::Read { .. }) {
            reads.entry(disk).or_default().push(request.id);
        }
    }
    let epoch = machine.begin_copy_on_write(guest);
    Captured {
        spec: machine.spec().clone(),
        sections: machine.save(),
        point: machine.point(),
        virtual_time: machine.now(),
        epoch,
        reads,
    }
}
