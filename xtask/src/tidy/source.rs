//! The files of the workspace as the rules see them: text, and code without comments or strings.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

/// Every text file that git tracks or would track.
#[derive(Debug, Default)]
pub struct Tree {
    /// In alphabetical order of their paths.
    pub files: Vec<SourceFile>,
}

/// One file.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Relative to the workspace, with `/`.
    pub path: String,
    /// As it is.
    pub text: String,
    /// Line by line, for Rust files: comments, strings and characters blanked.
    pub code: Vec<String>,
    /// How many lines come before the unit tests; all of them when there are none.
    pub production_len: usize,
}

impl Tree {
    /// Reads the workspace at `root`.
    ///
    /// # Errors
    /// When git cannot list the files.
    pub fn read(root: &Path) -> Result<Tree> {
        let options = ["ls-files", "--cached", "--others", "--exclude-standard"];
        let list = guests::capture(Command::new("git").args(options).current_dir(root))?;
        let mut paths: Vec<&str> = list.lines().collect();
        paths.sort_unstable();
        paths.dedup();
        // A file that is listed but cannot be read as text is deleted or binary: no rule for it.
        let text = |path: &str| fs::read_to_string(root.join(path)).ok();
        Ok(Tree::of(paths.into_iter().filter_map(|path| Some((path, text(path)?)))))
    }

    /// A tree of the given paths and texts.
    pub fn of<'a>(files: impl IntoIterator<Item = (&'a str, String)>) -> Tree {
        let files = files.into_iter().map(|(path, text)| SourceFile::new(path, text));
        Tree { files: files.collect() }
    }

    /// The Rust files.
    pub fn rust(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    /// The file at `path`.
    pub fn file(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }
}

impl SourceFile {
    fn new(path: &str, text: String) -> SourceFile {
        let is_rust = path.ends_with(".rs");
        let code: Vec<String> =
            if is_rust { blank(&text).lines().map(str::to_owned).collect() } else { Vec::new() };
        let production_len = if is_test_path(path) { 0 } else { before_tests(&code) };
        SourceFile { path: path.to_owned(), text, code, production_len }
    }

    /// The folder of the crate the file belongs to (`crates/cpu`), or "" when none.
    pub fn crate_dir(&self) -> &str {
        let parts: Vec<usize> = self.path.match_indices('/').map(|(at, _)| at).collect();
        match self.path.split('/').next() {
            Some("crates" | "tools") if parts.len() > 1 => &self.path[..parts[1]],
            Some("xtask") => "xtask",
            _ => "",
        }
    }

    /// The last part of [`SourceFile::crate_dir`].
    pub fn crate_name(&self) -> &str {
        self.crate_dir().rsplit('/').next().unwrap_or("")
    }

    /// Line numbers and code of what is not test code.
    pub fn production(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().take(self.production_len);
        lines.enumerate().map(|(index, line)| (index + 1, line.as_str()))
    }
}

/// Whether `name` stands in `code` as a whole word.
pub fn has_word(code: &str, name: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !is_part(before) && !is_part(code[at + name.len()..].chars().next())
    })
}

fn is_test_path(path: &str) -> bool {
    let is_test = |part| matches!(part, "tests" | "benches" | "tests.rs");
    path.split('/').any(is_test) || path.ends_with("_tests.rs")
}

/// How many lines stand before the first test module at the end of the file.
fn before_tests(code: &[String]) -> usize {
    let is_test = |line: &String| line.trim() == "#[cfg(test)]";
    let ends = |index: &usize| {
        let rest = code[index + 1..].iter().map(|line| line.trim());
        let next = rest.clone().find(|line| !line.is_empty() && !line.starts_with("#["));
        next.is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let mut starts = (0..code.len()).filter(|index| is_test(&code[*index]));
    starts.find(ends).unwrap_or(code.len())
}

/// `text` with the inside of comments, strings and character literals made spaces.
pub fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + skipped_len(&bytes[at..], at.checked_sub(1).map(|i| bytes[i]));
        if end == at {
            out.push(char::from(if bytes[at].is_ascii() { bytes[at] } else { b'?' }));
            at += 1;
        } else {
            let keep = |b: &u8| if *b == b'\n' { '\n' } else { ' ' };
            out.extend(bytes[at..end].iter().map(keep));
            at = end;
        }
    }
    out
}

/// The length of the comment, string or character literal that starts `rest`; 0 when none does.
fn skipped_len(rest: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_len(rest),
        [b'"', ..] => quoted_len(rest, b'"'),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string_len(rest, 1),
        [b'b', b'r', b'"' | b'#', ..] if !in_word => raw_string_len(rest, 2),
        [b'\'', b'\\', ..] => quoted_len(rest, b'\''),
        [b'\'', ..] => character_len(rest),
        _ => 0,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b if b == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_len(rest: &[u8], prefix_len: usize) -> usize {
    let hashes = rest[prefix_len..].iter().take_while(|b| **b == b'#').count();
    if rest.get(prefix_len + hashes) != Some(&b'"') {
        return 0;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let start = prefix_len + hashes + 1;
    let found = rest[start..].windows(end.len()).position(|window| window == end);
    found.map_or(rest.len(), |at| start + at + end.len())
}

/// A character literal without an escape; a lifetime has no closing quote and is not one.
fn character_len(rest: &[u8]) -> usize {
    let text = std::str::from_utf8(&rest[..rest.len().min(8)]);
    let text = match text {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or(""),
    };
    let mut chars = text.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some(c), Some('\'')) => 2 + c.len_utf8(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_takes_out_comments_and_literals_only() {
        let text =
            "a // b\n/* c /* d */ e */ f \"g\\\"h\" i 'j' k<'l> r#\"m\"n\"# o '\\'' p br\"q\"";
        let words: Vec<String> = blank(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["a", "f", "i", "k<'l>", "o", "p"]);
        assert_eq!(blank(text).lines().count(), 2);
    }

    #[test]
    fn production_ends_where_unit_tests_begin() {
        let text = "//! x\nfn f() {}\n#[cfg(test)]\nuse a;\n#[cfg(test)]\nmod tests {\n}\n";
        let file = SourceFile::new("crates/a/src/b.rs", text.to_owned());
        assert_eq!(file.production_len, 4);
        assert_eq!(file.crate_dir(), "crates/a");
        assert_eq!(SourceFile::new("crates/a/tests/b.rs", text.to_owned()).production_len, 0);
    }

    #[test]
    fn has_word_needs_whole_words() {
        assert!(has_word("let x: Instant = y", "Instant"));
        assert!(!has_word("InstantX MyInstant", "Instant"));
    }
}
