//! From the text of a flag to what it means; the message says how it is to be written.

use std::time::Duration;

use vmm::{DiskSpec, EngineKind, FlightSpec, Format, Forward, Model, NetKind, NetSpec};

use crate::key_value::KeyValues;

const DISK_FORM: &str = "write path=FILE[,format=raw|qcow2][,readonly]";
const NET_FORM: &str = "write user[,hostfwd=tcp:HOSTPORT-:GUESTPORT]... or tap=NAME, and \
    optionally mac=AA:BB:CC:DD:EE:FF";

/// `--disk`.
pub fn disk(text: &str) -> Result<DiskSpec, String> {
    let parse = || {
        let parsed =
            KeyValues::parse(text, &["path", "format", "readonly"]).map_err(|e| e.to_string())?;
        let path = parsed.value("path").map_err(|e| e.to_string())?;
        let path = path.ok_or("path= is missing")?.into();
        let format = match parsed.value("format").map_err(|e| e.to_string())? {
            None => None,
            Some("raw") => Some(Format::Raw),
            Some("qcow2") => Some(Format::Qcow2),
            Some(other) => return Err(format!("{other:?} is no format")),
        };
        let read_only = parsed.flag("readonly").map_err(|e| e.to_string())?;
        Ok(DiskSpec { path, format, read_only })
    };
    parse().map_err(|problem: String| format!("{problem}; {DISK_FORM}"))
}

/// `--net`.
pub fn net(text: &str) -> Result<NetSpec, String> {
    let parse = || {
        let parsed = KeyValues::parse(text, &["user", "tap", "mac", "hostfwd"])
            .map_err(|e| e.to_string())?;
        let user = parsed.flag("user").map_err(|e| e.to_string())?;
        let tap = parsed.value("tap").map_err(|e| e.to_string())?;
        let forwards = parsed.values("hostfwd").map_err(|e| e.to_string())?;
        let mac = parsed.value("mac").map_err(|e| e.to_string())?.map(mac).transpose()?;
        let kind = match (user, tap) {
            (true, None) => {
                let forwards = forwards.into_iter().map(str::parse::<Forward>);
                NetKind::User(forwards.collect::<Result<_, _>>().map_err(|e| e.to_string())?)
            }
            (false, Some(_)) if !forwards.is_empty() => {
                return Err("hostfwd= goes with user only".into());
            }
            (false, Some(name)) => NetKind::Tap(name.into()),
            _ => return Err("either user or tap=NAME is needed".into()),
        };
        Ok(NetSpec { kind, mac })
    };
    parse().map_err(|problem: String| format!("{problem}; {NET_FORM}"))
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        if digits { u8::from_str_radix(part, 16).ok() } else { None }
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("{text:?} is no Ethernet address"))
}

/// `--cpu`.
pub fn cpu(text: &str) -> Result<Model, String> {
    match text {
        "v3" | "x86-64-v3" => Ok(Model::V3),
        "v2" | "x86-64-v2" => Ok(Model::V2),
        _ => Err("there are v3 and v2".into()),
    }
}

/// `--engine`.
pub fn engine(text: &str) -> Result<EngineKind, String> {
    match text {
        "interp" => Ok(EngineKind::Interp),
        "translate" => Ok(EngineKind::Translate),
        _ => Err("there are interp and translate".into()),
    }
}

/// A number, decimal or with 0x.
pub fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16),
        _ => text.parse(),
    };
    parsed.map_err(|_| "write a whole number, decimal or with 0x".into())
}

/// An I/O port.
pub fn port(text: &str) -> Result<u16, String> {
    let port = number(text)?;
    u16::try_from(port).map_err(|_| "an I/O port is 0 to 0xffff".into())
}

/// A time: `30`, `30s`, `500ms` or `2min`.
pub fn time(text: &str) -> Result<Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number = number.parse::<u32>().ok();
    let unit = match unit {
        "" | "s" => Some(Duration::from_secs(1)),
        "ms" => Some(Duration::from_millis(1)),
        "min" => Some(Duration::from_secs(60)),
        _ => None,
    };
    let time = number.zip(unit).map(|(number, unit)| unit * number);
    time.ok_or_else(|| "write a time such as 30s, 500ms or 2min".into())
}

/// A time that is not zero.
pub fn interval(text: &str) -> Result<Duration, String> {
    match time(text)? {
        Duration::ZERO => Err("write a time such as 10s".into()),
        time => Ok(time),
    }
}

/// `--flight-recorder`.
pub fn flight(text: &str) -> Result<FlightSpec, String> {
    let parse = || {
        let (window, size) = text.split_once(',')?;
        let size_max = crate::size::parse_size(size).ok()?;
        Some(FlightSpec { window: interval(window).ok()?, size_max })
    };
    parse().ok_or_else(|| "write a time and a size such as 10min,4G".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let spec =
            |path: &str, format, read_only| DiskSpec { path: path.into(), format, read_only };
        for (text, expected) in [
            ("path=a.img", spec("a.img", None, false)),
            ("readonly,path=a", spec("a", None, true)),
            ("path=a,,b,format=qcow2", spec("a,b", Some(Format::Qcow2), false)),
            ("path=a=b,format=raw", spec("a=b", Some(Format::Raw), false)),
        ] {
            assert_eq!(disk(text), Ok(expected), "{text}");
        }
        for text in ["", "a.img", "path", "path=", "path=a,format=vmdk", "path=a,ro", "format=raw"]
        {
            let error = disk(text).unwrap_err();
            assert!(error.contains("path=FILE"), "{text}: {error}");
        }
    }

    #[test]
    fn nets_are_read() {
        let user = |forwards: &[&str]| {
            NetKind::User(forwards.iter().map(|text| text.parse().unwrap()).collect())
        };
        let mac = Some([0x52, 0x54, 0, 0xa, 0xb, 0xff]);
        for (text, kind, mac) in [
            ("user", user(&[]), None),
            ("user,mac=52:54:00:0a:0B:ff", user(&[]), mac),
            (
                "user,hostfwd=tcp:2222-:22,hostfwd=udp:53-:53",
                user(&["tcp:2222-:22", "udp:53-:53"]),
                None,
            ),
            ("tap=t0", NetKind::Tap("t0".into()), None),
        ] {
            assert_eq!(net(text), Ok(NetSpec { kind, mac }), "{text}");
        }
        for text in [
            "",
            "tap",
            "tap=",
            "user,tap=x",
            "mac=52:54:00:00:00:01",
            "tap=x,hostfwd=tcp:1-:2",
            "user,hostfwd=1-2",
            "user,mac=52:54",
            "user,mac=52:54:00:00:00:001",
            "user,mac=+1:54:00:00:00:00",
            "bridge",
        ] {
            assert!(net(text).unwrap_err().contains("tap=NAME"), "{text}");
        }
    }

    #[test]
    fn small_values_are_read() {
        assert_eq!((cpu("v2"), cpu("x86-64-v3")), (Ok(Model::V2), Ok(Model::V3)));
        assert!(cpu("host").is_err() && engine("kvm").is_err());
        assert_eq!((port("0xf4"), port("244")), (Ok(0xf4), Ok(0xf4)));
        assert!(port("0x10000").is_err() && port("-1").is_err() && port("0x+1").is_err());
        assert_eq!(time("30"), Ok(Duration::from_secs(30)));
        assert_eq!(time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(time("2min"), Ok(Duration::from_secs(120)));
        let window = Duration::from_secs(600);
        assert_eq!(flight("10min,4G"), Ok(FlightSpec { window, size_max: 4 << 30 }));
        for text in ["", "10min", "10min,", ",4G", "0s,4G", "4G,10min"] {
            assert!(flight(text).unwrap_err().contains("10min,4G"), "{text}");
        }
        assert!(time("").is_err() && time("5h").is_err() && time("1.5s").is_err());
    }
}
