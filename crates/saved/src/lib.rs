//! Saved state: named, versioned sections in a canonical encoding, so that equal state has equal
//! bytes and a hash compares machines.
//!
//! Invariants: saved types are never run-time types; a reader takes the versions it knows and
//! whatever nobody took is an error; no count in hostile input is trusted for an allocation.

#![forbid(unsafe_code)]

use minicbor::{Decode, Encode};

/// A component's saved form: plain data with numbered minicbor fields.
///
/// Field numbers are for ever; a field added later is an `Option`.
pub trait Saved: Encode<()> + for<'b> Decode<'b, ()> {
    /// Name of the section, stable across releases.
    const NAME: &'static str;
    /// Version written by this release; readers take this one and those before it.
    const VERSION: u16;
}

/// One component's saved state, encoded.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Section {
    /// [`Saved::NAME`] of the type inside.
    #[n(0)]
    pub name: String,
    /// Which one, where a machine has several of a kind; 0 otherwise.
    #[n(1)]
    pub instance: u32,
    /// [`Saved::VERSION`] at the time of saving.
    #[n(2)]
    pub version: u16,
    /// The canonical encoding.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub body: Vec<u8>,
}

/// Why saved state was refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// A section that the machine needs is not there.
    #[error("section '{name}' instance {instance} is missing")]
    Missing {
        /// Section name.
        name: String,
        /// Instance number.
        instance: u32,
    },
    /// A section was made by a newer release.
    #[error("section '{name}' has version {found}, this release reads up to {known}")]
    Version {
        /// Section name.
        name: String,
        /// Version in the input.
        found: u16,
        /// Newest version this release reads.
        known: u16,
    },
    /// The bytes of a section are not what its type allows.
    #[error("section '{name}' is malformed: {detail}")]
    Malformed {
        /// Section name.
        name: String,
        /// What was wrong.
        detail: String,
    },
    /// A section nobody asked for.
    #[error("section '{name}' instance {instance} is not known to this machine")]
    Leftover {
        /// Section name.
        name: String,
        /// Instance number.
        instance: u32,
    },
}

impl Section {
    /// Encodes `state` as instance `instance` of its kind.
    pub fn encode<S: Saved>(instance: u32, state: &S) -> Section {
        let body = minicbor::to_vec(state).expect("encoding into memory cannot fail");
        Section { name: S::NAME.to_owned(), instance, version: S::VERSION, body }
    }

    /// Decodes the section as an `S`.
    ///
    /// # Errors
    /// [`RestoreError::Version`] for a newer version, [`RestoreError::Malformed`] for bytes that
    /// are not an `S` or that go on after it.
    pub fn decode<S: Saved>(&self) -> Result<S, RestoreError> {
        if self.version > S::VERSION {
            return Err(RestoreError::Version {
                name: self.name.clone(),
                found: self.version,
                known: S::VERSION,
            });
        }
        let malformed =
            |detail: String| RestoreError::Malformed { name: self.name.clone(), detail };
        let mut decoder = minicbor::Decoder::new(&self.body);
        let state = decoder.decode::<S>().map_err(|e| malformed(e.to_string()))?;
        if decoder.position() != self.body.len() {
            return Err(malformed("bytes after the end".to_owned()));
        }
        Ok(state)
    }

    /// A 128-bit hash of the section's name, instance, version and bytes.
    pub fn hash(&self) -> u128 {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(self.name.as_bytes());
        hasher.update(&self.instance.to_le_bytes());
        hasher.update(&self.version.to_le_bytes());
        hasher.update(&self.body);
        hasher.digest128()
    }
}

/// The sections of a machine, in the order they were put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections(Vec<Section>);

impl Sections {
    /// Adds a section.
    pub fn put(&mut self, section: Section) {
        self.0.push(section);
    }

    /// Encodes and adds `state`.
    pub fn save<S: Saved>(&mut self, instance: u32, state: &S) {
        self.put(Section::encode(instance, state));
    }

    /// Removes and returns the section of that name and instance.
    ///
    /// # Errors
    /// [`RestoreError::Missing`] when it is not there.
    pub fn take(&mut self, name: &str, instance: u32) -> Result<Section, RestoreError> {
        let at = self.0.iter().position(|s| s.name == name && s.instance == instance);
        let at = at.ok_or_else(|| RestoreError::Missing { name: name.to_owned(), instance })?;
        Ok(self.0.remove(at))
    }

    /// Takes and decodes an `S`.
    ///
    /// # Errors
    /// As [`Sections::take`] and [`Section::decode`].
    pub fn restore<S: Saved>(&mut self, instance: u32) -> Result<S, RestoreError> {
        self.take(S::NAME, instance)?.decode()
    }

    /// Succeeds if every section was taken.
    ///
    /// # Errors
    /// [`RestoreError::Leftover`] naming the first that was not.
    pub fn finish(self) -> Result<(), RestoreError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some(s) => Err(RestoreError::Leftover { name: s.name, instance: s.instance }),
        }
    }

    /// The sections in order.
    pub fn iter(&self) -> impl Iterator<Item = &Section> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    struct Counter {
        #[n(0)]
        value: u64,
    }

    impl Saved for Counter {
        const NAME: &'static str = "counter";
        const VERSION: u16 = 2;
    }

    #[test]
    fn sections_restore_what_was_saved() {
        let mut sections = Sections::default();
        sections.save(0, &Counter { value: 7 });
        sections.save(1, &Counter { value: 8 });
        assert_eq!(sections.restore::<Counter>(1).unwrap(), Counter { value: 8 });
        assert_eq!(sections.restore::<Counter>(0).unwrap(), Counter { value: 7 });
        sections.finish().unwrap();
    }

    #[test]
    fn sections_leftover_is_an_error() {
        let mut sections = Sections::default();
        sections.save(3, &Counter { value: 7 });
        assert!(matches!(sections.finish(), Err(RestoreError::Leftover { instance: 3, .. })));
    }

    #[test]
    fn section_of_newer_version_is_refused() {
        let mut section = Section::encode(0, &Counter { value: 7 });
        section.version = 3;
        let error = section.decode::<Counter>().unwrap_err();
        assert!(matches!(error, RestoreError::Version { found: 3, known: 2, .. }));
    }

    #[test]
    fn section_with_trailing_or_missing_bytes_is_refused() {
        let mut section = Section::encode(0, &Counter { value: 7 });
        section.body.push(0);
        assert!(matches!(section.decode::<Counter>(), Err(RestoreError::Malformed { .. })));
        section.body.truncate(1);
        assert!(matches!(section.decode::<Counter>(), Err(RestoreError::Malformed { .. })));
    }
}
