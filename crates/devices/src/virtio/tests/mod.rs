//! Tests that drive the devices from the guest's side: configuration space, BARs, rings.

mod blk;
mod driver;
mod hostile;
mod net;
mod streams;
mod transport;

use driver::{Driver, GuestQueue, Rig};
