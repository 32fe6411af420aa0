//! Port forwarding as users write it: `tcp:[ADDRESS:]HOSTPORT-[GUEST]:GUESTPORT`.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use super::GUEST_ADDRESS;

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens. If no address is written it is 127.0.0.1, so that a guest is not
    /// open to the world by accident; write 0.0.0.0 for all interfaces.
    pub host: SocketAddrV4,
    /// Port in the guest.
    pub guest_port: u16,
}

/// Why a forwarding cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("hostfwd={text}: {problem}; write for example hostfwd=tcp:127.0.0.1:2222-:22")]
pub struct ForwardError {
    text: String,
    problem: &'static str,
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Forward, ForwardError> {
        parse(text).map_err(|problem| ForwardError { text: text.into(), problem })
    }
}

fn parse(text: &str) -> Result<Forward, &'static str> {
    let (protocol, rest) = text.split_once(':').ok_or("no protocol before the first ':'")?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err("the protocol is neither tcp nor udp"),
    };
    let (host, guest) = rest.split_once('-').ok_or("no '-' between host and guest")?;
    let (address, host_port) = host.rsplit_once(':').unwrap_or(("", host));
    let (guest_address, guest_port) =
        guest.rsplit_once(':').ok_or("no ':' before the guest's port")?;
    let address = match address {
        "" => Ipv4Addr::LOCALHOST,
        address => address.parse().map_err(|_| "the host's address is not an IPv4 address")?,
    };
    if !guest_address.is_empty() && guest_address.parse() != Ok(GUEST_ADDRESS) {
        return Err("the guest's address is always 10.0.2.15; leave it out");
    }
    let host = SocketAddrV4::new(address, port(host_port)?);
    Ok(Forward { protocol, host, guest_port: port(guest_port)? })
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|port| *port != 0).ok_or("a port is a number from 1 to 65535")
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{protocol}:{}-:{}", self.host, self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        for (text, expected) in [
            ("tcp:2222-:22", "tcp:127.0.0.1:2222-:22"),
            ("tcp::2222-:22", "tcp:127.0.0.1:2222-:22"),
            ("tcp:0.0.0.0:80-10.0.2.15:8080", "tcp:0.0.0.0:80-:8080"),
            ("udp:192.0.2.7:53-:53", "udp:192.0.2.7:53-:53"),
        ] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), expected);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        for (text, problem) in [
            ("2222", "no protocol"),
            ("sctp:1-:1", "neither tcp nor udp"),
            ("tcp:2222", "no '-'"),
            ("tcp:2222-22", "before the guest's port"),
            ("tcp:0-:22", "1 to 65535"),
            ("tcp:70000-:22", "1 to 65535"),
            ("tcp:1-:", "1 to 65535"),
            ("tcp:localhost:1-:1", "not an IPv4 address"),
            ("tcp:1-10.0.2.16:1", "always 10.0.2.15"),
        ] {
            let error = text.parse::<Forward>().unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(text), "{error}");
        }
    }
}
