//! What the translator did, for people who tune it. Not state of the guest.

/// Counters since the translator was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Statistics {
    /// Blocks translated.
    pub(crate) blocks: u64,
    /// Guest instructions translated.
    pub(crate) translated: u64,
    /// Bytes of host code emitted.
    pub(crate) code_bytes: u64,
    /// Times all translations were dropped.
    pub(crate) flushes: u64,
    /// Regions whose translations were dropped for room.
    pub(crate) evictions: u64,
    /// Pages whose translations were dropped because code was written.
    pub(crate) invalidated_pages: u64,
    /// Entries into translated code.
    pub(crate) entries: u64,
    /// TLB misses served without the fall-back engine.
    pub(crate) fills: u64,
    /// Accesses that faulted and went on once their page was in the shadow.
    pub(crate) shadowed: u64,
    /// Times a fast block went over to a careful one for the first time.
    pub(crate) careful: u64,
    /// Direct jumps linked.
    pub(crate) links: u64,
    /// Lookups of branch targets by the dispatcher.
    pub(crate) lookups: u64,
}

impl Statistics {
    /// By name.
    pub(crate) fn counters(&self) -> Vec<(String, u64)> {
        [
            ("blocks translated", self.blocks),
            ("instructions translated", self.translated),
            ("bytes of host code", self.code_bytes),
            ("flushes", self.flushes),
            ("regions evicted", self.evictions),
            ("pages invalidated", self.invalidated_pages),
            ("entries", self.entries),
            ("TLB fills", self.fills),
            ("faults served by the shadow", self.shadowed),
            ("careful blocks entered", self.careful),
            ("links", self.links),
            ("lookups", self.lookups),
        ]
        .map(|(name, count)| (name.to_owned(), count))
        .to_vec()
    }
}
