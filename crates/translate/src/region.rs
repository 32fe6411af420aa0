//! Regions: code memory is filled and emptied a region at a time, so that what is used goes on
//! while room is made.

use std::collections::BTreeSet;

use crate::key::BlockKey;
use crate::site::{FaultSite, Site, SiteId};

/// How many regions code memory has.
pub(crate) const REGIONS: usize = 16;
/// Bits of a site's number that count within its region.
const SITE_BITS: u32 = 24;
/// A region with less than this part of its bytes in use is emptied before its turn.
const SPARSE: usize = 4;
/// How many bytes of code there are for each site, and for each instruction that may fault, or few
/// more.
const BYTES_OF_SITE: usize = 16;
const BYTES_OF_FAULT: usize = 32;

/// A translation that was put into a region.
#[derive(Clone, Copy)]
pub(crate) struct Made {
    pub(crate) page: usize,
    pub(crate) key: BlockKey,
    /// Offset in code memory of its entry with flags in AX.
    pub(crate) entry: u32,
}

/// One region.
#[derive(Default)]
pub(crate) struct Region {
    /// Offsets in code memory.
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) used: usize,
    /// Bytes of translations that were not dropped.
    pub(crate) live: usize,
    pub(crate) made: Vec<Made>,
    /// Pages that far branches of this region are linked to.
    pub(crate) linked: BTreeSet<usize>,
    sites: Vec<Site>,
    faults: Vec<FaultSite>,
}

// There are three sites for two guest instructions.
const _: () = assert!(size_of::<Site>() <= 16);

impl Region {
    fn clear(&mut self) {
        *self = Region { start: self.start, end: self.end, used: self.start, ..Region::default() };
    }

    fn is_sparse(&self) -> bool {
        self.live < (self.end - self.start) / SPARSE
    }
}

/// All of them.
pub(crate) struct Regions {
    regions: [Region; REGIONS],
    size: usize,
    /// The one that is being filled.
    current: usize,
}

impl Regions {
    /// Regions of `size` bytes each from offset `first` of code memory.
    pub(crate) fn new(first: usize, size: usize) -> Regions {
        let regions = std::array::from_fn(|index| {
            let start = first + index * size;
            Region { start, end: start + size, used: start, ..Region::default() }
        });
        Regions { regions, size, current: 0 }
    }

    pub(crate) fn current(&mut self) -> &mut Region {
        &mut self.regions[self.current]
    }

    /// Index of the region that the offset in code memory lies in.
    pub(crate) fn index_of(&self, offset: u32) -> usize {
        (offset as usize - self.regions[0].start) / self.size
    }

    pub(crate) fn of(&mut self, offset: u32) -> &mut Region {
        &mut self.regions[self.index_of(offset)]
    }

    /// The number of the next site.
    pub(crate) fn next_site(&self) -> SiteId {
        let count = self.regions[self.current].sites.len() as u32;
        assert!(count < 1 << (SITE_BITS - 1));
        (self.current as u32) << SITE_BITS | count
    }

    pub(crate) fn add(&mut self, sites: &[Site], faults: &[FaultSite]) {
        let size = self.size;
        let region = self.current();
        if region.sites.is_empty() {
            // What is not used takes no memory, and what is used is never moved.
            region.sites.reserve(size / BYTES_OF_SITE);
            region.faults.reserve(size / BYTES_OF_FAULT);
        }
        region.sites.extend(sites);
        region.faults.extend(faults);
    }

    /// What is known about a site.
    pub(crate) fn site(&self, id: SiteId) -> Site {
        let (region, index) = (id >> SITE_BITS, id & ((1 << SITE_BITS) - 1));
        self.regions[region as usize].sites[index as usize]
    }

    /// The instruction whose host code is at `offset` of code memory.
    pub(crate) fn fault_site(&self, offset: u32) -> Option<FaultSite> {
        if (offset as usize) < self.regions[0].start {
            return None;
        }
        let faults = &self.regions[self.index_of(offset)].faults;
        let index = faults.partition_point(|site| site.end() <= offset);
        faults.get(index).copied().filter(|site| site.start <= offset)
    }

    /// Turns to another region: an empty one, one with little in use, or the one filled longest
    /// ago. The caller then forgets what it held.
    pub(crate) fn turn(&mut self) -> Region {
        let full = self.current();
        full.made.shrink_to_fit();
        full.sites.shrink_to_fit();
        full.faults.shrink_to_fit();
        let others = (1..REGIONS).map(|step| (self.current + step) % REGIONS);
        let unused = others.clone().find(|&index| self.regions[index].made.is_empty());
        let sparse = || others.clone().find(|&index| self.regions[index].is_sparse());
        self.current = unused.or_else(sparse).unwrap_or((self.current + 1) % REGIONS);
        let mut held = Region::default();
        std::mem::swap(&mut held, self.current());
        *self.current() =
            Region { start: held.start, end: held.end, used: held.start, ..Region::default() };
        held
    }

    /// Empties all.
    pub(crate) fn clear(&mut self) {
        self.regions.iter_mut().for_each(Region::clear);
        self.current = 0;
    }

    /// Bytes in use.
    pub(crate) fn live(&self) -> usize {
        self.regions.iter().map(|region| region.live).sum()
    }

    /// Bytes that the tables beside the code take.
    pub(crate) fn table_bytes(&self) -> usize {
        let of = |region: &Region| {
            region.sites.len() * size_of::<Site>()
                + region.faults.len() * size_of::<FaultSite>()
                + region.made.capacity() * size_of::<Made>()
        };
        self.regions.iter().map(of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(regions: &mut Regions, live: usize) {
        let region = regions.current();
        region.live = live;
        region.made.push(Made { page: 0, key: BlockKey::default(), entry: region.start as u32 });
    }

    #[test]
    fn regions_turn_to_empty_then_sparse_then_oldest() {
        let mut regions = Regions::new(4096, 1000);
        for index in 0..REGIONS {
            assert_eq!(regions.current, index);
            fill(&mut regions, if index == 5 { 100 } else { 900 });
            assert_eq!(regions.turn().made.is_empty(), index + 1 < REGIONS);
        }
        assert_eq!(regions.current, 5, "the sparse one comes first");
        fill(&mut regions, 900);
        assert!(!regions.turn().made.is_empty());
        assert_eq!(regions.current, 6, "then the one filled longest ago");
    }

    #[test]
    fn region_site_numbers_lead_back() {
        let mut regions = Regions::new(64, 1000);
        fill(&mut regions, 1);
        regions.turn();
        let id = regions.next_site();
        let why = crate::site::Why::Goto;
        let site = Site { why, offset: 7, unretired: 0, in_string: false };
        regions.add(&[site], &[]);
        assert_eq!(regions.site(id).offset, 7);
        assert_eq!(regions.index_of(1064), 1);
    }
}
