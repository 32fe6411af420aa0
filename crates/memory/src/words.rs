//! A word per page that several threads use, zero without having been touched.
//!
//! UNSAFETY: zeroed memory of integers is taken for memory of atomics.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

/// Shared words. A fresh one takes memory only where it is touched.
#[derive(Clone)]
pub(crate) struct Words(Arc<Box<[AtomicU32]>>);

impl Words {
    pub(crate) fn new(count: usize) -> Words {
        let zeroes: Box<[u32]> = vec![0; count].into_boxed_slice();
        // SAFETY: `AtomicU32` has the size, alignment and bit validity of `u32`, and the box is
        // not used under its old type any more.
        Words(Arc::new(unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU32]) }))
    }

    #[inline]
    pub(crate) fn at(&self, page: usize) -> &AtomicU32 {
        &self.0[page]
    }
}
