//! The code cache: where translations are, which code they were made of, and when they go.
//!
//! Code memory is filled region by region; when all are full, the translations of one region are
//! dropped ([`crate::region`]). When code of a page is overwritten (`Ram::code_generation`), the
//! translations of that page are dropped, and those of pages whose last instruction reaches into
//! it. What leads to a translation is known: links within its page and far links to it by the
//! page, and its slot in a table of indirect branches by its address. It is undone before the
//! memory is used again.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use cpu::tlb::{SIDE_SUPERVISOR, SIDE_SUPERVISOR_ANY};
use cpu::{Cpu, Vcpu};
use memory::{Ram, RamOffset, VISIT_SIZE};
use native::signal::Watch;
use types::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

use crate::TranslateError;
use crate::block::{self, BLOCK_BYTES_MAX, Block, Paper, Place, Workshop};
use crate::breakpoints::Breakpoints;
use crate::classify::Mode;
use crate::code_memory::CodeMemory;
use crate::crossing::Gates;
use crate::encode::Encodings;
use crate::entry::{STACK_CHECK, STACK_CHECK_SIZE};
use crate::fetch::{fetch_place, mark_code, page_reader};
use crate::key::BlockKey;
use crate::layout::{BRANCH_SLOTS, BranchSlot, Flags, branch_slot};
use crate::linear::Linear;
use crate::options::Options;
use crate::plan::{self, NextPage, Source, Variant};
use crate::recover;
use crate::region::{Made, REGIONS, Regions};
use crate::site::{FAR_DIFFERS, FAR_TARGET, FaultSite, Site, SiteId};
use crate::statistics::Statistics;
use crate::tables::Tables;
use crate::trampoline::{self, Trampolines};
use crate::x87;

/// Blocks begin at multiples of this.
const ALIGNMENT: usize = 16;
/// Least size of a region, and what it is a multiple of.
const REGION_BYTES_MIN: usize = BLOCK_BYTES_MAX;
const FREE: BranchSlot = BranchSlot { key: 0, target: 0 };

/// Times a page's last instruction is translated again because another page follows.
const NEXT_PAGES_MAX: u32 = 64;

/// A translation.
#[derive(Clone, Copy)]
struct Translation {
    /// Offset in code memory of the entry with flags in AX, and of the one with flags in RFLAGS.
    entry: u32,
    host_entry: u32,
    /// Bytes of code memory.
    size: u32,
}

/// A jump within a page that leads to a translation.
struct Link {
    patch: u32,
    stub: u32,
    entry: u32,
}

/// A branch of another page that leads to a translation.
struct FarLink {
    branch: FarBranch,
    entry: u32,
}

/// Translations of one RAM page.
#[derive(Default)]
struct Page {
    generation: u32,
    blocks: BTreeMap<BlockKey, Translation>,
    links: Vec<Link>,
    far_links: Vec<FarLink>,
    /// Pages with an instruction that reaches into this one.
    reaching: BTreeSet<usize>,
    /// Times an instruction that reaches into the next page was translated for another one.
    next_pages: u32,
}

impl Page {
    fn new(generation: u32) -> Page {
        Page { generation, ..Page::default() }
    }

    fn is_empty(&self) -> bool {
        let unlinked = self.links.is_empty() && self.far_links.is_empty();
        self.blocks.is_empty() && self.reaching.is_empty() && unlinked
    }
}

/// Guest code to be found or translated.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// Where it is.
    pub(crate) at: RamOffset,
    /// Linear address.
    pub(crate) gva: u64,
    pub(crate) mode: Mode,
    pub(crate) variant: Variant,
    /// By a jump within the page with flags in RFLAGS.
    pub(crate) from_flags: bool,
}

impl Wanted {
    fn key(self) -> BlockKey {
        BlockKey::new((self.at.0 & PAGE_MASK) as u16, self.mode, self.variant)
    }
}

/// A jump within a page, as in [`crate::site::Why::Link`].
#[derive(Clone, Copy)]
pub(crate) struct Jump {
    pub(crate) patch: u32,
    pub(crate) stub: u32,
    pub(crate) flags: Flags,
    /// It is in code whose accesses go by the host's page tables.
    pub(crate) direct: bool,
}

/// A direct branch to another page, as in [`crate::site::Why::Far`].
#[derive(Clone, Copy)]
pub(crate) struct FarBranch {
    pub(crate) constant: u32,
    pub(crate) stub: u32,
    pub(crate) direct: bool,
}

/// The cache.
pub(crate) struct Cache {
    // Dropped in this order: the handler forgets the code before it is unmapped.
    _watch: Watch,
    code: CodeMemory,
    /// Written by the trampolines.
    _x87_area: Box<x87::Area>,
    regions: Regions,
    workshop: Workshop,
    pages: BTreeMap<usize, Page>,
    tables: Vec<Option<Box<[BranchSlot]>>>,
    pub(crate) linear: Linear,
    /// `Ram::code_writes` when the translations were last known right, and the RAM they are of.
    code_writes: u64,
    ram_base: u64,
    /// Where executed code of that RAM is marked, if it is.
    marks: Option<u64>,
    breakpoints: Breakpoints,
    /// Where translations are listed.
    list: Option<Box<dyn Write + Send>>,
    /// Counts what drops translations for room, so that who holds an offset knows it is stale.
    pub(crate) epoch: u64,
}

impl Cache {
    pub(crate) fn new(options: Options) -> Result<Cache, TranslateError> {
        let x87_area = x87::Area::new();
        let (bytes, trampolines) = trampoline::generate(&x87_area);
        let first = bytes.len().next_multiple_of(REGION_BYTES_MIN);
        let size = (options.cache_size / REGIONS).next_multiple_of(REGION_BYTES_MIN);
        let size = size.max(REGION_BYTES_MIN);
        let mut code = CodeMemory::new(first + REGIONS * size)?;
        code.write(0, &bytes);
        Ok(Cache {
            _watch: recover::watch(&code, trampolines.fault)?,
            code,
            _x87_area: x87_area,
            regions: Regions::new(first, size),
            workshop: Workshop {
                encodings: Encodings::new(),
                paper: Paper::default(),
                tables: Tables::new(),
                trampolines,
                options,
                rotates: std::arch::is_x86_feature_detected!("bmi2"),
                branch_tables: [0; 4],
                gates: Gates::default(),
            },
            pages: BTreeMap::new(),
            tables: vec![None; Mode::COUNT],
            linear: Linear::new(),
            code_writes: 0,
            ram_base: 0,
            marks: None,
            breakpoints: Breakpoints::default(),
            list: None,
            epoch: 0,
        })
    }

    pub(crate) fn list_translations(&mut self, list: Box<dyn Write + Send>) {
        self.list = Some(list);
    }

    fn list(&mut self, gva: u64, translation: Translation) {
        let Some(list) = &mut self.list else { return };
        let at = self.code.base() + u64::from(translation.entry.min(translation.host_entry));
        if writeln!(list, "{at:x} {:x} guest {gva:x}", translation.size).is_err() {
            self.list = None;
        }
    }

    pub(crate) fn trampolines(&self) -> Trampolines {
        self.workshop.trampolines
    }

    /// Address of the executable view.
    pub(crate) fn base(&self) -> u64 {
        self.code.base()
    }

    /// Drops everything.
    pub(crate) fn flush(&mut self, statistics: &mut Statistics) {
        statistics.flushes += 1;
        self.epoch += 1;
        self.regions.clear();
        self.pages.clear();
        self.linear.clear();
        for table in self.tables.iter_mut().flatten() {
            table.fill(FREE);
        }
    }

    /// Makes room for a block: drops the translations of one region.
    #[cold]
    fn turn(&mut self, statistics: &mut Statistics) {
        self.code.forget_writable();
        let old = self.regions.turn();
        if old.made.is_empty() {
            return;
        }
        statistics.evictions += 1;
        self.epoch += 1;
        let inside = |offset: u32| (old.start..old.end).contains(&(offset as usize));
        for page in &old.linked {
            if let Some(page) = self.pages.get_mut(page) {
                page.far_links.retain(|link| !inside(link.branch.constant));
            }
        }
        for made in &old.made {
            self.forget_branches_to(made.page, made.key, made.entry);
            let Some(page) = self.pages.get_mut(&made.page) else { continue };
            if page.blocks.get(&made.key).is_some_and(|block| block.entry == made.entry) {
                page.blocks.remove(&made.key);
            }
        }
        let touched: BTreeSet<usize> = old.made.iter().map(|made| made.page).collect();
        for number in touched {
            let Some(mut page) = self.pages.remove(&number) else { continue };
            page.links.retain(|link| !inside(link.patch));
            for link in page.links.extract_if(.., |link| inside(link.entry)) {
                self.lead(link.patch, link.stub);
            }
            for link in page.far_links.extract_if(.., |link| inside(link.entry)) {
                self.unlink_far(link.branch);
            }
            if !page.is_empty() {
                self.pages.insert(number, page);
            }
        }
    }

    /// Makes the cache right for RAM as it is now.
    pub(crate) fn sync(&mut self, ram: &Ram, statistics: &mut Statistics) {
        let base = ram.base().as_ptr() as u64;
        let marks = ram.visit_marks().map(|marks| marks.as_ptr() as u64);
        if (self.ram_base, self.marks) != (base, marks) || ram.code_writes() < self.code_writes {
            self.flush(statistics);
            (self.ram_base, self.marks) = (base, marks);
        } else if self.code_writes != ram.code_writes() {
            self.drop_stale(ram, statistics);
        }
        self.code_writes = ram.code_writes();
    }

    /// Whether `sync` would do nothing.
    pub(crate) fn is_right(&self, ram: &Ram) -> bool {
        self.code_writes == ram.code_writes()
    }

    #[cold]
    fn drop_stale(&mut self, ram: &Ram, statistics: &mut Statistics) {
        let stale: Vec<usize> = self
            .pages
            .iter()
            .filter(|(page, translated)| translated.generation != ram.code_generation(**page))
            .map(|(page, _)| *page)
            .collect();
        self.drop_pages(stale, statistics);
    }

    /// Drops the translations of RAM pages, and those that reach into them.
    pub(crate) fn drop_pages(&mut self, mut pages: Vec<usize>, statistics: &mut Statistics) {
        while let Some(page) = pages.pop() {
            let Some(translated) = self.pages.remove(&page) else { continue };
            statistics.invalidated_pages += 1;
            for (&key, block) in &translated.blocks {
                self.forget_branches_to(page, key, block.entry);
                self.regions.of(block.entry).live -= block.size as usize;
            }
            for link in translated.far_links {
                self.unlink_far(link.branch);
            }
            pages.extend(translated.reaching);
        }
    }

    /// Nothing is to be translated at these linear addresses any more, and nowhere else on their
    /// account.
    pub(crate) fn set_breakpoints(&mut self, addresses: &[u64], statistics: &mut Statistics) {
        let old = std::mem::replace(&mut self.breakpoints, Breakpoints::at(addresses));
        // It leads past the TLB, by which breakpoints are met.
        self.linear.clear();
        self.drop_pages(old.pages().collect(), statistics);
    }

    /// Whether the page of linear address `rip` has breakpoints.
    pub(crate) fn has_breakpoints(&self, rip: u64) -> bool {
        self.breakpoints.in_page(rip)
    }

    /// Whether the TLB leads to code with breakpoints that was translated without: not any more.
    #[inline]
    pub(crate) fn meets_breakpoints(&mut self, vcpu: &Vcpu, statistics: &mut Statistics) -> bool {
        if self.breakpoints.is_empty() {
            return false;
        }
        let new = self.breakpoints.learn_all(vcpu);
        let meets = !new.is_empty();
        self.drop_pages(new, statistics);
        meets
    }

    /// The translation with entry `entry` is of an instruction that reaches into another page
    /// now. Forgets it, so that it is translated again; false if that happened too often.
    pub(crate) fn forget(&mut self, wanted: Wanted, entry: u32) -> bool {
        let Some(page) = self.pages.get_mut(&wanted.at.page()) else { return true };
        let key = wanted.key();
        let Some(block) = page.blocks.get(&key).copied().filter(|block| block.entry == entry)
        else {
            return true;
        };
        page.next_pages += 1;
        if page.next_pages > NEXT_PAGES_MAX {
            return false;
        }
        page.blocks.remove(&key);
        self.forget_branches_to(wanted.at.page(), key, entry);
        self.regions.of(entry).live -= block.size as usize;
        true
    }

    /// The table of indirect branches no longer leads to the translation.
    fn forget_branches_to(&mut self, page: usize, key: BlockKey, entry: u32) {
        let (offset, mode) = (key.offset(), key.mode_index());
        let at = self.ram_base + ((page as u64) << PAGE_SHIFT) + u64::from(offset);
        let target = self.code.base() + u64::from(entry);
        if let Some(table) = &mut self.tables[mode] {
            let slot = &mut table[branch_slot(at)];
            if slot.key == at && slot.target == target {
                *slot = FREE;
            }
        }
        if Mode::is_direct(mode) {
            self.linear.forget_target(offset, target);
        }
    }

    /// The number of the MSRs by which SYSCALL and SYSRET work now.
    #[inline]
    pub(crate) fn gate(&mut self, vcpu: &Vcpu) -> u32 {
        self.workshop.gates.look(&vcpu.msrs)
    }

    /// Address of the table of indirect branches for `mode`.
    pub(crate) fn table(&mut self, mode: Mode) -> u64 {
        let table = &mut self.tables[mode.index()];
        table.get_or_insert_with(|| vec![FREE; BRANCH_SLOTS].into_boxed_slice()).as_ptr() as u64
    }

    /// The translation of the code at `wanted`, made if need be: offset of its entry with flags in
    /// AX. `None` if its first instruction has a breakpoint or cannot be fetched whole.
    pub(crate) fn get(
        &mut self,
        cpu: &mut Cpu<'_>,
        wanted: Wanted,
        statistics: &mut Statistics,
    ) -> Option<u32> {
        // A page walk may have set bits in a page that is both code and page table.
        self.sync(cpu.ram, statistics);
        let Wanted { at, gva, mode, variant, .. } = wanted;
        if let Some(page) = self.breakpoints.learn(gva, at) {
            self.drop_pages(vec![page], statistics);
        }
        if self.breakpoints.is_at(at) {
            return None;
        }
        if variant == Variant::Careful {
            return self.find(cpu, wanted, statistics);
        }
        let key = self.ram_base + at.0;
        if let Some(table) = &self.tables[mode.index()] {
            let slot = table[branch_slot(key)];
            if slot.key == key {
                return Some((slot.target - self.code.base()) as u32);
            }
        }
        let entry = self.find(cpu, wanted, statistics)?;
        let target = self.code.base() + u64::from(entry);
        if self.workshop.options.links
            && let Some(table) = &mut self.tables[mode.index()]
        {
            table[branch_slot(key)] = BranchSlot { key, target };
        }
        Some(entry)
    }

    /// As `get`, without the table of indirect branches.
    fn find(
        &mut self,
        cpu: &mut Cpu<'_>,
        wanted: Wanted,
        statistics: &mut Statistics,
    ) -> Option<u32> {
        let page = self.pages.get(&wanted.at.page());
        match page.and_then(|page| page.blocks.get(&wanted.key())) {
            Some(block) => Some(block.entry),
            None => self.translate(cpu, wanted, statistics),
        }
    }

    fn translate(
        &mut self,
        cpu: &mut Cpu<'_>,
        wanted: Wanted,
        statistics: &mut Statistics,
    ) -> Option<u32> {
        let Wanted { at, mode, .. } = wanted;
        let on_two = plan::is_on_two_pages(&page_reader(cpu.ram, at), wanted.key().offset());
        let next_at = match on_two {
            true => Some(self.next_page(cpu, wanted)?),
            false => None,
        };
        self.sync(cpu.ram, statistics);
        if mode.kernel {
            for side in [SIDE_SUPERVISOR, SIDE_SUPERVISOR_ANY] {
                self.workshop.branch_tables[usize::from(side)] = self.table(Mode { side, ..mode });
            }
        }
        cpu.vcpu.toil();
        let block = self.make_in_room(cpu, wanted, next_at, statistics);
        for &(first, end) in &block.extents {
            let (first, end) = (u64::from(first), u64::from(end).min(PAGE_SIZE));
            mark_code(cpu, RamOffset((at.0 & !PAGE_MASK) + first), end - first);
        }
        if let Some(next) = next_at {
            let end = block.extents.iter().map(|&(_, end)| u64::from(end)).max();
            mark_code(cpu, next, end.unwrap_or(0).saturating_sub(PAGE_SIZE).max(1));
            let generation = cpu.ram.code_generation(next.page());
            let page = self.pages.entry(next.page()).or_insert_with(|| Page::new(generation));
            page.reaching.insert(at.page());
        }
        statistics.blocks += 1;
        statistics.translated += block.insns as u64;
        statistics.code_bytes += block.code.bytes().len() as u64;
        let translation = self.keep(block, at.page(), wanted.key());
        let generation = cpu.ram.code_generation(at.page());
        let page = self.pages.entry(at.page()).or_insert_with(|| Page::new(generation));
        assert!(page.generation == generation, "stale translations were dropped before");
        page.blocks.insert(wanted.key(), translation);
        self.list(wanted.gva, translation);
        Some(translation.entry)
    }

    /// Where the marks of executed code of the page at `at` are, if there are any.
    fn marks_of(&self, at: RamOffset) -> Option<u64> {
        self.marks.map(|marks| marks + (at.0 & !PAGE_MASK) / VISIT_SIZE)
    }

    /// The block for `wanted`, which may reach into the page at `next_at`, where there is room.
    fn make_in_room(
        &mut self,
        cpu: &Cpu<'_>,
        wanted: Wanted,
        next_at: Option<RamOffset>,
        statistics: &mut Statistics,
    ) -> Block {
        let (at, start) = (wanted.at, wanted.key().offset());
        let stress = self.workshop.options.shadow.is_stress();
        let source = Source {
            read: &page_reader(cpu.ram, at),
            start,
            next: next_at.map(|next| self.next_page_bytes(cpu, next)),
            marks: self.marks_of(at),
            crosses: self.workshop.gates.now.is_some(),
            breakpoints: self.breakpoints.in_ram_page(at.page()),
            from_flags: wanted.from_flags || (stress && start % 4 < 2),
        };
        let mut block = self.make(wanted, &source);
        if self.regions.current().used + block.code.bytes().len() > self.regions.current().end {
            self.turn(statistics);
            block = self.make(wanted, &source);
        }
        block
    }

    fn make(&mut self, wanted: Wanted, source: &Source<'_>) -> Block {
        let origin = self.regions.current().used as u32;
        let place = Place { origin, first_site: self.regions.next_site() };
        block::translate(&mut self.workshop, wanted.mode, wanted.variant, source, place)
    }

    /// Puts a block, made for it, where the current region is filled.
    fn keep(&mut self, block: Block, page: usize, key: BlockKey) -> Translation {
        let region = self.regions.current();
        let at = region.used;
        assert!(at + block.code.bytes().len() <= region.end, "a region has room for every block");
        region.used = (at + block.code.bytes().len()).next_multiple_of(ALIGNMENT);
        let size = region.used - at;
        region.live += size;
        let entry = at as u32 + block.entries.saved;
        let host_entry = at as u32 + block.entries.host;
        region.made.push(Made { page, key, entry });
        self.code.provide(at..region.used, region.end);
        self.code.write(at, block.code.bytes());
        self.regions.add(&block.sites, &block.faults);
        self.workshop.recycle(block);
        Translation { entry, host_entry, size: size as u32 }
    }

    /// Where the page behind that of `wanted` is, unless fetching there raises something or it is
    /// not RAM.
    fn next_page(&self, cpu: &mut Cpu<'_>, wanted: Wanted) -> Option<RamOffset> {
        let gva = (wanted.gva & !PAGE_MASK).wrapping_add(PAGE_SIZE);
        fetch_place(cpu, gva)
    }

    fn next_page_bytes(&self, cpu: &Cpu<'_>, next: RamOffset) -> NextPage {
        let mut bytes = [0; plan::INSTRUCTION_SIZE_MAX - 1];
        cpu.ram.load_bytes(next, &mut bytes);
        NextPage { host: self.ram_base + next.0, bytes }
    }

    /// What is known about a site.
    pub(crate) fn site(&self, id: SiteId) -> Site {
        self.regions.site(id)
    }

    /// The instruction whose host code is at `rip`.
    pub(crate) fn fault_site(&self, rip: u64) -> Option<FaultSite> {
        self.regions.fault_site(rip.wrapping_sub(self.code.base()) as u32)
    }

    /// Bytes of code memory that translations in use take, and of what is known about them.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let tables = self.tables.iter().flatten().map(|table| size_of_val(&**table));
        let tables = tables.sum::<usize>() + self.linear.bytes();
        (self.regions.live(), self.regions.table_bytes() + tables)
    }

    fn lead(&mut self, displacement_at: u32, target: u32) {
        let displacement = i64::from(target) - (i64::from(displacement_at) + 4);
        self.code.write(displacement_at as usize, &(displacement as i32).to_le_bytes());
    }

    /// Leads a branch to another page straight to the translation with entry `entry` whenever its
    /// target is the code at host address `key`; otherwise the table of indirect branches is asked.
    pub(crate) fn link_far(&mut self, branch: FarBranch, key: u64, entry: u32) {
        let number = (key.wrapping_sub(self.ram_base) >> PAGE_SHIFT) as usize;
        let Some(page) = self.pages.get_mut(&number) else { return };
        page.far_links.push(FarLink { branch, entry });
        self.regions.of(branch.constant).linked.insert(number);
        let checks = branch.direct && self.code.has(entry as usize, &STACK_CHECK);
        let trusted = entry + if checks { u32::from(STACK_CHECK_SIZE) } else { 0 };
        self.lead(branch.constant + FAR_TARGET, trusted);
        self.lead(branch.constant + FAR_DIFFERS, self.workshop.trampolines.branch);
        self.code.write(branch.constant as usize, &key.to_le_bytes());
    }

    /// Undoes `link_far`.
    fn unlink_far(&mut self, branch: FarBranch) {
        self.code.write(branch.constant as usize, &0u64.to_le_bytes());
        self.lead(branch.constant + FAR_DIFFERS, branch.stub);
    }

    /// Leads the jump whose displacement is at `jump.patch`, in the same RAM page, to the
    /// translation of `wanted` if that has entry `entry`.
    pub(crate) fn link(&mut self, jump: Jump, wanted: Wanted, entry: u32) {
        let Jump { patch, stub, flags, .. } = jump;
        let Some(page) = self.pages.get_mut(&wanted.at.page()) else { return };
        let found = page.blocks.get(&wanted.key()).filter(|found| found.entry == entry);
        let Some(host_entry) = found.map(|found| found.host_entry) else { return };
        page.links.push(Link { patch, stub, entry });
        self.lead(patch, if flags == Flags::Host { host_entry } else { entry });
    }
}
