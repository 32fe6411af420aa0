//! The escape key of a terminal console: Ctrl-A, then a letter.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A H prints.
pub(super) const HELP: &str = "\r\n\
    Ctrl-A X       quit: stop the VM at once (doppel console: detach only)\r\n\
    Ctrl-A Ctrl-A  send Ctrl-A to the guest (Ctrl-A A does the same)\r\n\
    Ctrl-A H       this help\r\n";

/// What a key sequence asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// Bytes for the guest.
    Bytes(Vec<u8>),
    /// Ctrl-A X.
    Quit,
    /// Ctrl-A H.
    Help,
}

/// Takes escape sequences out of what is typed, also when they come in pieces.
#[derive(Debug, Default)]
pub(super) struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// What `typed` means, in order. Ctrl-A before any other key is swallowed with that key.
    pub fn feed(&mut self, typed: &[u8]) -> Vec<Typed> {
        let mut found = Vec::new();
        let mut bytes = Vec::new();
        for &key in typed {
            if !self.escaped {
                if key == ESCAPE {
                    self.escaped = true;
                } else {
                    bytes.push(key);
                }
                continue;
            }
            self.escaped = false;
            let action = match key {
                ESCAPE | b'a' | b'A' => {
                    bytes.push(ESCAPE);
                    continue;
                }
                b'x' | b'X' => Typed::Quit,
                b'h' | b'H' | b'?' => Typed::Help,
                _ => continue,
            };
            if !bytes.is_empty() {
                found.push(Typed::Bytes(std::mem::take(&mut bytes)));
            }
            found.push(action);
        }
        if !bytes.is_empty() {
            found.push(Typed::Bytes(bytes));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_found_whole_and_in_pieces() {
        let bytes = |text: &str| Typed::Bytes(text.into());
        for (typed, expected) in [
            ("abc", vec![bytes("abc")]),
            ("a\x01xb", vec![bytes("a"), Typed::Quit, bytes("b")]),
            ("\x01\x01\x01a", vec![bytes("\x01\x01")]),
            ("\x01h", vec![Typed::Help]),
            ("a\x01qb", vec![bytes("ab")]),
        ] {
            assert_eq!(EscapeFilter::default().feed(typed.as_bytes()), expected, "{typed:?}");
            let mut filter = EscapeFilter::default();
            let mut single: Vec<Typed> = Vec::new();
            for key in typed.bytes() {
                for found in filter.feed(&[key]) {
                    match (single.last_mut(), found) {
                        (Some(Typed::Bytes(last)), Typed::Bytes(more)) => last.extend(more),
                        (_, found) => single.push(found),
                    }
                }
            }
            assert_eq!(single, expected, "{typed:?} key by key");
        }
    }
}
