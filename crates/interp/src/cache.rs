//! Decoded basic blocks by RAM offset and mode, dropped when their page's code is overwritten.

use memory::{Ram, RamOffset};

use crate::insn::Insn;

/// Slots of the direct-mapped index; a power of two.
const SLOTS: usize = 1 << 15;
/// Instructions kept in all; beyond, everything is dropped.
const INSNS_MAX: usize = 300_000;
const EMPTY: u32 = u32::MAX;

/// Straight-line code within one page that starts at `at`.
struct Block {
    at: RamOffset,
    bits: u8,
    generation: u32,
    insns: Box<[Insn]>,
}

/// The cache.
pub struct BlockCache {
    index: Vec<u32>,
    blocks: Vec<Block>,
    insns: usize,
}

fn slot(at: RamOffset, bits: u8) -> usize {
    let mixed = (at.0 ^ (u64::from(bits) << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize % SLOTS
}

impl BlockCache {
    /// An empty cache.
    pub fn new() -> BlockCache {
        BlockCache { index: vec![EMPTY; SLOTS], blocks: Vec::new(), insns: 0 }
    }

    /// The block at `at` for code of `bits`, if it is still what RAM holds.
    #[inline]
    pub fn find(&self, ram: &Ram, at: RamOffset, bits: u8) -> Option<usize> {
        let id = self.index[slot(at, bits)];
        let block = self.blocks.get(id as usize)?;
        let valid = block.at == at
            && block.bits == bits
            && block.generation == ram.code_generation(at.page());
        valid.then_some(id as usize)
    }

    /// The instructions of a block.
    #[inline]
    pub fn insns(&self, id: usize) -> &[Insn] {
        &self.blocks[id].insns
    }

    /// Where a block is.
    pub fn place(&self, id: usize) -> RamOffset {
        self.blocks[id].at
    }

    /// Adds a block decoded just now.
    pub fn insert(&mut self, ram: &Ram, at: RamOffset, bits: u8, insns: Vec<Insn>) -> usize {
        if self.insns + insns.len() > INSNS_MAX {
            self.clear();
        }
        self.insns += insns.len();
        let generation = ram.code_generation(at.page());
        self.blocks.push(Block { at, bits, generation, insns: insns.into_boxed_slice() });
        let id = self.blocks.len() - 1;
        self.index[slot(at, bits)] = id as u32;
        id
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.index.fill(EMPTY);
        self.blocks.clear();
        self.insns = 0;
    }
}
