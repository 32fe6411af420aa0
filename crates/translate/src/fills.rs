//! Whether caching a walk can help the access that missed, or its instruction is to be stepped.

use types::PAGE_MASK;

/// Fills in a row for two pages of an instruction before the fall-back engine executes it.
const IN_A_ROW_MAX: u32 = 4;

/// The last fills. Two pages of one instruction may displace each other for ever; a loop that comes
/// to one new page after the other does not.
#[derive(Default)]
pub(crate) struct Fills {
    /// Where translated code went on.
    resume: u32,
    /// The last two pages, the newer first.
    pages: [u64; 2],
    in_a_row: u32,
}

impl Fills {
    /// Whether another fill can help at `resume`, for the access to `gva`.
    pub(crate) fn may_help(&mut self, resume: u32, gva: u64) -> bool {
        let page = gva & !PAGE_MASK;
        let again = std::mem::replace(&mut self.resume, resume) == resume;
        if again && self.pages.contains(&page) {
            self.in_a_row += 1;
        } else {
            self.in_a_row = 0;
        }
        if self.pages[0] != page {
            self.pages = [page, self.pages[0]];
        }
        let helps = self.in_a_row < IN_A_ROW_MAX;
        if !helps {
            *self = Fills::default();
        }
        helps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_displace_each_other_are_told_from_those_of_a_loop() {
        let mut fills = Fills::default();
        assert!((0..1000).all(|page| fills.may_help(7, page << 12)));
        let mut fills = Fills::default();
        assert_eq!((0..1000).position(|turn| !fills.may_help(7, (turn % 2) << 12 | 5)), Some(5));
        assert_eq!((0..1000).position(|_| !fills.may_help(7, 1 << 12)), Some(4));
        assert!((0..1000).all(|turn| fills.may_help(turn, 1 << 12)), "each is another access");
    }
}
