//! The clock's ten bytes: seconds since 1970 as calendar fields, in BCD or binary, 12 or 24 hours.

/// Register B: 24-hour mode.
pub(super) const HOURS_24: u8 = 1 << 1;
/// Register B: binary, not BCD.
pub(super) const BINARY: u8 = 1 << 2;
/// Hours register in 12-hour mode: afternoon.
const PM: u8 = 1 << 7;

pub(super) const SECONDS_PER_DAY: i64 = 86_400;

/// Second, minute, hour, day of the week (1 is Sunday), day, month, year of the century, century,
/// as register values.
pub(super) type Fields = [u8; 8];

/// Days since 1970-01-01 of a proleptic Gregorian date; months and days out of range carry on.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day last.
    let shifted = year * 12 + month - 3;
    let (year, month) = (shifted.div_euclid(12), shifted.rem_euclid(12));
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// Year, month and day of a day since 1970-01-01.
fn date_of(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let year = era * 400 + year + i64::from(month >= 10);
    (year, (month + 2) % 12 + 1, day_of_year - (153 * month + 2) / 5 + 1)
}

fn encode(value: i64, mode: u8) -> u8 {
    let value = value.rem_euclid(100) as u8;
    if mode & BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
}

fn decode(value: u8, mode: u8) -> i64 {
    if mode & BINARY != 0 {
        i64::from(value)
    } else {
        i64::from(value >> 4) * 10 + i64::from(value & 15)
    }
}

fn encode_hour(hour: i64, mode: u8) -> u8 {
    if mode & HOURS_24 != 0 {
        return encode(hour, mode);
    }
    let half = if hour >= 12 { PM } else { 0 };
    half | encode((hour + 11) % 12 + 1, mode)
}

fn decode_hour(value: u8, mode: u8) -> i64 {
    if mode & HOURS_24 != 0 {
        return decode(value, mode);
    }
    let half = if value & PM != 0 { 12 } else { 0 };
    decode(value & !PM, mode) % 12 + half
}

/// The registers at `seconds` since 1970 under register B's `mode` bits.
pub(super) fn fields_of(seconds: i64, mode: u8) -> Fields {
    let (days, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = date_of(days);
    // 1970-01-01 was a Thursday.
    let weekday = (days + 4).rem_euclid(7) + 1;
    [
        encode(second % 60, mode),
        encode(second / 60 % 60, mode),
        encode_hour(second / 3600, mode),
        encode(weekday, mode),
        encode(day, mode),
        encode(month, mode),
        encode(year, mode),
        encode(year.div_euclid(100), mode),
    ]
}

/// Seconds since 1970 that registers stand for; the day of the week is not looked at.
pub(super) fn seconds_of(fields: Fields, mode: u8) -> i64 {
    let [second, minute, hour, _, day, month, year, century] = fields;
    let year = decode(century, mode) * 100 + decode(year, mode);
    let days = days_of(year, decode(month, mode), decode(day, mode));
    let minutes = decode_hour(hour, mode) * 60 + decode(minute, mode);
    days * SECONDS_PER_DAY + minutes * 60 + decode(second, mode)
}

/// Whether alarm bytes (second, minute, hour) match; 0xc0 and above match anything.
pub(super) fn alarm_matches(alarm: [u8; 3], fields: &Fields) -> bool {
    alarm.iter().zip(fields).all(|(&alarm, &field)| alarm >= 0xc0 || alarm == field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_known_times() {
        for (seconds, mode, expected) in [
            (0, HOURS_24, [0, 0, 0, 5, 1, 1, 0x70, 0x19]),
            (951_782_399, HOURS_24, [0x59, 0x59, 0x23, 2, 0x28, 2, 0, 0x20]),
            (951_782_400, HOURS_24, [0, 0, 0, 3, 0x29, 2, 0, 0x20]),
            (1_709_251_199, HOURS_24 | BINARY, [59, 59, 23, 5, 29, 2, 24, 20]),
            (1_709_251_200, 0, [0, 0, 0x12, 6, 1, 3, 0x24, 0x20]),
            (1_709_251_200 + 13 * 3600, 0, [0, 0, 0x81, 6, 1, 3, 0x24, 0x20]),
        ] {
            assert_eq!(fields_of(seconds, mode), expected, "{seconds} {mode:#x}");
        }
    }

    #[test]
    fn seconds_of_is_the_inverse_in_every_mode() {
        for mode in [0, HOURS_24, BINARY, HOURS_24 | BINARY] {
            for step in 0..4000 {
                let seconds = step * 3_456_789;
                assert_eq!(seconds_of(fields_of(seconds, mode), mode), seconds);
            }
        }
    }

    #[test]
    fn seconds_of_nonsense_is_some_time() {
        for mode in [0, BINARY] {
            seconds_of([0xff; 8], mode);
            fields_of(seconds_of([0xff; 8], mode), mode);
        }
    }
}
