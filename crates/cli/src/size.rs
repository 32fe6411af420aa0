//! Amounts of memory as people write them: `512M`, `2G`, `1048576`.

/// Bytes of an amount: a whole number, then K, M, G or T for powers of 1024 (`KiB`, `KB` and small
/// letters too), or nothing.
///
/// # Errors
/// What is wrong, for the message.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("write a whole number and K, M, G or T, for example 512M".into()),
    };
    let number: u64 =
        number.parse().map_err(|_| "write a whole number and a unit, for example 512M")?;
    number.checked_mul(1 << shift).ok_or_else(|| "that is more than any machine can address".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64k", 64 << 10),
            ("512M", 512 << 20),
            ("2G", 2 << 30),
            ("2GiB", 2 << 30),
            ("1tb", 1 << 40),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1", "1.5G", "1X", "5 M", "99999999999999999999", "99999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
