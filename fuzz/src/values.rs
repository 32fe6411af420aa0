//! What users type: sizes, `key=value` lists, port forwardings, consoles. Whatever is understood
//! prints as something that is understood the same way.

use host::console::ConsoleSpec;
use host::net::Forward;

use crate::key_value::KeyValues;
use crate::size::parse_size;

const KEYS: &[&str] = &["path", "format", "readonly", "hostfwd", "mac", "user", "tap"];

/// Runs one input.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(size) = parse_size(&text) {
        assert_eq!(parse_size(&size.to_string()), Ok(size));
    }
    if let Ok(forward) = text.parse::<Forward>() {
        assert_eq!(forward.to_string().parse(), Ok(forward));
    }
    if let Ok(console) = text.parse::<ConsoleSpec>() {
        assert_eq!(console.to_string().parse(), Ok(console));
    }
    match KeyValues::parse(&text, KEYS) {
        Ok(parsed) => look(&parsed),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn look(parsed: &KeyValues) {
    for key in KEYS {
        let (value, values, flag) = (parsed.value(key), parsed.values(key), parsed.flag(key));
        // A key that is there is a flag or has a value, never both.
        assert!(!matches!((&value, &flag), (Ok(Some(_)), Ok(true))), "{key}");
        if let (Ok(Some(value)), Ok(values)) = (&value, &values) {
            assert_eq!(values, &[*value]);
        }
    }
}
