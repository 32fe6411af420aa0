//! Names of VMs.

use crate::VmError;

/// Longest name, bytes. It must leave room for the path of a socket.
pub const NAME_LEN_MAX: usize = 64;

/// Checks a name that a user gave: 1 to [`NAME_LEN_MAX`] of `A-Z a-z 0-9 . _ -`, not starting
/// with a dot or a dash (a name is a file name, and an argument).
///
/// # Errors
/// [`VmError::Name`], with what is wrong.
pub fn check_name(name: &str) -> Result<(), VmError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let problem = if name.is_empty() {
        "is empty".to_owned()
    } else if name.len() > NAME_LEN_MAX {
        format!("has {} characters", name.len())
    } else if let Some(wrong) = name.chars().find(|c| !allowed(*c)) {
        format!("has {wrong:?} in it")
    } else if name.starts_with(['.', '-']) {
        "starts with a dot or a dash".to_owned()
    } else {
        return Ok(());
    };
    Err(VmError::Name { name: name.into(), problem })
}

/// The name of a VM whose user gave none.
pub(crate) fn default_name() -> String {
    format!("vm-{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_file_names_can_be() {
        let long = "x".repeat(NAME_LEN_MAX);
        for good in ["a", "web-1", "A.b_c", &long] {
            check_name(good).unwrap();
        }
        check_name(&default_name()).unwrap();
        let too_long = "x".repeat(NAME_LEN_MAX + 1);
        for bad in ["", "a/b", "..", ".x", "-x", "a b", "é", "a\n", &too_long] {
            assert!(matches!(check_name(bad), Err(VmError::Name { .. })), "{bad:?}");
        }
    }
}
