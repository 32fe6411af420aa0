//! Guest addresses as newtypes: physical, linear (virtual after segmentation), and frame numbers.

use std::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// The bits of an address that are the offset in its page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;

/// Guest physical address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// Guest virtual (linear) address: after segmentation, before paging.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gva(pub u64);

/// Guest frame number: a [`Gpa`] shifted right by [`PAGE_SHIFT`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gfn(pub u64);

impl Gpa {
    /// The frame that holds this address.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 >> PAGE_SHIFT)
    }

    /// Offset within the page, 0..4096.
    pub const fn page_offset(self) -> u64 {
        self.0 & PAGE_MASK
    }

    /// The address `delta` bytes on, wrapping at 2^64 as address arithmetic does.
    #[must_use]
    pub const fn wrapping_add(self, delta: u64) -> Gpa {
        Gpa(self.0.wrapping_add(delta))
    }

    /// The address `delta` bytes on, or `None` past 2^64.
    pub const fn checked_add(self, delta: u64) -> Option<Gpa> {
        match self.0.checked_add(delta) {
            Some(sum) => Some(Gpa(sum)),
            None => None,
        }
    }
}

impl Gva {
    /// The page number: address shifted right by [`PAGE_SHIFT`].
    pub const fn page(self) -> u64 {
        self.0 >> PAGE_SHIFT
    }

    /// Offset within the page, 0..4096.
    pub const fn page_offset(self) -> u64 {
        self.0 & PAGE_MASK
    }

    /// The address `delta` bytes on, wrapping at 2^64.
    #[must_use]
    pub const fn wrapping_add(self, delta: u64) -> Gva {
        Gva(self.0.wrapping_add(delta))
    }

    /// Whether bits 63..47 are all equal (SDM vol. 1, 3.3.7.1), as 4-level paging demands.
    pub const fn is_canonical(self) -> bool {
        let top = (self.0 as i64) >> 47;
        top == 0 || top == -1
    }
}

impl Gfn {
    /// The first address of the frame.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 << PAGE_SHIFT)
    }
}

macro_rules! hex_format {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    )*};
}

hex_format!(Gpa, Gva, Gfn);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gva_canonical_is_sign_extension_of_bit_47() {
        for (address, expected) in [
            (0, true),
            (0x7fff_ffff_ffff, true),
            (0x8000_0000_0000, false),
            (0xffff_7fff_ffff_ffff, false),
            (0xffff_8000_0000_0000, true),
            (u64::MAX, true),
        ] {
            assert_eq!(Gva(address).is_canonical(), expected, "{address:#x}");
        }
    }

    #[test]
    fn gpa_splits_into_frame_and_offset() {
        let gpa = Gpa(0x12_3456);
        assert_eq!(gpa.gfn(), Gfn(0x123));
        assert_eq!(gpa.gfn().gpa().wrapping_add(gpa.page_offset()), gpa);
    }
}
