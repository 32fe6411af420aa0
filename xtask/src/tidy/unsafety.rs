//! Unsafe code: in few crates, never without its reason.

use super::Finding;
use super::source::{SourceFile, Tree, has_word};

/// The crates that may have unsafe code.
const MAY: &[&str] =
    &["crates/memory", "crates/native", "crates/translate", "crates/host", "tools/cosim"];

/// How far above an unsafe block its reason may stand, in lines.
const REASON_DISTANCE_MAX: usize = 12;

/// Finds unsafe code where it must not be, blocks without a reason, and crates that forget to
/// forbid it.
pub fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        let may = MAY.contains(&file.crate_dir());
        if may {
            findings.extend(unexplained(file));
            continue;
        }
        let code = file.code.iter().enumerate();
        let lines = code.filter(|(_, code)| has_word(code, "unsafe")).map(|(index, _)| index + 1);
        let message = "unsafe code is not allowed in this crate";
        findings.extend(lines.map(|line| Finding::new(&file.path, line, message)));
        if is_crate_root(&file.path) && !file.text.contains("#![forbid(unsafe_code)]") {
            findings.push(Finding::new(&file.path, 0, "write #![forbid(unsafe_code)]"));
        }
    }
    findings
}

fn is_crate_root(path: &str) -> bool {
    ["/src/lib.rs", "/src/main.rs"].iter().any(|root| path.ends_with(root))
}

fn unexplained(file: &SourceFile) -> Vec<Finding> {
    let text: Vec<&str> = file.text.lines().collect();
    let is_block = |code: &str| {
        let plain = code.split_whitespace().collect::<Vec<_>>().join(" ");
        plain.contains("unsafe {") || plain.contains("unsafe impl")
    };
    let is_explained = |index: usize| {
        let above = &text[index.saturating_sub(REASON_DISTANCE_MAX)..=index];
        above.iter().any(|line| line.contains("SAFETY:"))
    };
    let blocks = file.code.iter().enumerate().filter(|(_, code)| is_block(code));
    let silent = blocks.filter(|(index, _)| !is_explained(*index));
    let message = "say in a SAFETY: comment above who meets which obligation";
    silent.map(|(index, _)| Finding::new(&file.path, index + 1, message)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&Tree::of([(path, text.to_owned())])).len()
    }

    #[test]
    fn check_finds_unsafe_in_the_wrong_crate_and_unforbidden_roots() {
        assert_eq!(findings("crates/cpu/src/a.rs", "fn f() { unsafe { g() } }"), 1);
        assert_eq!(findings("crates/cpu/src/a.rs", "// unsafe\nlet unsafe_x = 1;"), 0);
        assert_eq!(findings("crates/cpu/src/lib.rs", "//! x"), 1);
        assert_eq!(findings("crates/cpu/src/lib.rs", "#![forbid(unsafe_code)]"), 0);
    }

    #[test]
    fn check_wants_a_reason_where_unsafe_is_allowed() {
        assert_eq!(findings("crates/host/src/a.rs", "unsafe { g() }"), 1);
        assert_eq!(
            findings("crates/host/src/a.rs", "// SAFETY: as documented.\nunsafe { g() }"),
            0
        );
    }
}
