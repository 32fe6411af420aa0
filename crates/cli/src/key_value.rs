//! The form of composed values: `key=value,key,key=value`. A comma in a value is written twice.

use std::fmt;

/// A value taken apart, its items in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValues {
    items: Vec<(String, Option<String>)>,
}

/// What is wrong with a composed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyValueError {
    /// An item between two commas is empty.
    Empty,
    /// A key that does not exist here; the keys that do.
    Unknown(String, &'static [&'static str]),
    /// A key that may come once came twice.
    Twice(String),
    /// A key came without its value.
    NoValue(String),
    /// A key that takes no value came with one.
    Value(String),
}

impl fmt::Display for KeyValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyValueError::Empty => {
                f.write_str("there is an empty part; a comma in a value is written twice")
            }
            KeyValueError::Unknown(key, keys) => {
                write!(f, "{key:?} is not known here; known are {}", keys.join(", "))
            }
            KeyValueError::Twice(key) => write!(f, "{key} is given twice"),
            KeyValueError::NoValue(key) => write!(f, "{key} needs a value: {key}=..."),
            KeyValueError::Value(key) => write!(f, "{key} takes no value"),
        }
    }
}

impl KeyValues {
    /// Takes `text` apart; every key must be among `keys`.
    pub fn parse(text: &str, keys: &'static [&'static str]) -> Result<KeyValues, KeyValueError> {
        let items = split(text).into_iter().map(|item| match item.split_once('=') {
            Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
            None => (item, None),
        });
        let items: Vec<_> = items.collect();
        for (key, value) in &items {
            if key.is_empty() && value.is_none() {
                return Err(KeyValueError::Empty);
            }
            if !keys.contains(&key.as_str()) {
                return Err(KeyValueError::Unknown(key.clone(), keys));
            }
        }
        Ok(KeyValues { items })
    }

    /// The value of a key that may come once.
    pub fn value(&self, key: &str) -> Result<Option<&str>, KeyValueError> {
        let values = self.values(key)?;
        match values[..] {
            [] => Ok(None),
            [value] => Ok(Some(value)),
            _ => Err(KeyValueError::Twice(key.into())),
        }
    }

    /// The values of a key that may come any number of times.
    pub fn values(&self, key: &str) -> Result<Vec<&str>, KeyValueError> {
        let found = self.items.iter().filter(|(name, _)| name == key);
        let value = |(_, value): &'_ (String, Option<String>)| value.as_deref().map(str::len);
        found
            .map(|item| match (value(item), &item.1) {
                (Some(1..), Some(value)) => Ok(value.as_str()),
                _ => Err(KeyValueError::NoValue(key.into())),
            })
            .collect()
    }

    /// Whether a key is there that takes no value.
    pub fn flag(&self, key: &str) -> Result<bool, KeyValueError> {
        let found: Vec<_> = self.items.iter().filter(|(name, _)| name == key).collect();
        match found[..] {
            [] => Ok(false),
            [(_, None)] => Ok(true),
            [(_, Some(_))] => Err(KeyValueError::Value(key.into())),
            _ => Err(KeyValueError::Twice(key.into())),
        }
    }
}

/// Splits at single commas and makes one of two.
fn split(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            items.push(String::new());
        } else if let Some(item) = items.last_mut() {
            item.push(c);
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[&str] = &["path", "ro", "fwd"];

    #[test]
    fn values_flags_and_repeated_keys_are_found() {
        let parsed = KeyValues::parse("path=a=b,,c,ro,fwd=1,fwd=2", KEYS).unwrap();
        assert_eq!(parsed.value("path"), Ok(Some("a=b,c")));
        assert_eq!(parsed.flag("ro"), Ok(true));
        assert_eq!(parsed.values("fwd").unwrap(), ["1", "2"]);
        let parsed = KeyValues::parse("path=x", KEYS).unwrap();
        assert_eq!((parsed.flag("ro"), parsed.value("fwd")), (Ok(false), Ok(None)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "empty"),
            ("path=a,", "empty"),
            ("path=a,x=1", "\"x\" is not known here; known are path, ro, fwd"),
            ("=a", "\"\" is not known"),
        ] {
            let error = KeyValues::parse(text, KEYS).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let of = |text| KeyValues::parse(text, KEYS).unwrap();
        for (error, expected) in [
            (of("path=a,path=b").value("path").map(drop), "twice"),
            (of("path").value("path").map(drop), "needs a value"),
            (of("path=").value("path").map(drop), "needs a value"),
            (of("ro=1").flag("ro").map(drop), "no value"),
            (of("ro,ro").flag("ro").map(drop), "twice"),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
