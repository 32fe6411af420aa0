//! Where the parts of a TCP segment over IPv4 are in an Ethernet frame.

pub(super) const ETHERNET_SIZE: usize = 14;
pub(super) const IP_SIZE: usize = 20;
pub(super) const TCP_SIZE: usize = 20;
pub(super) const PROTOCOL_TCP: u8 = 6;
/// Flags (RFC 9293, 3.1).
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// A TCP segment with its headers whole; both parts reach to the frame's end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'a> {
    /// From the IPv4 header on (RFC 791).
    pub ip: &'a [u8],
    /// From the TCP header on.
    pub tcp: &'a [u8],
}

impl Segment<'_> {
    /// The segment in `frame`, if it is one.
    pub fn of(frame: &[u8]) -> Option<Segment<'_>> {
        let ip = frame.get(ETHERNET_SIZE..)?;
        let is_tcp = frame[12..14] == [8, 0]
            && ip.len() >= IP_SIZE
            && ip[0] >> 4 == 4
            && ip[9] == PROTOCOL_TCP;
        let tcp = ip.get(usize::from(*ip.first()? & 15) * 4..)?;
        (is_tcp && tcp.len() >= TCP_SIZE).then_some(Segment { ip, tcp })
    }

    /// Its flags.
    pub fn flags(&self) -> u8 {
        self.tcp[13]
    }

    /// Whether it has data, by the sizes that its headers tell.
    pub fn has_data(&self) -> bool {
        let size = usize::from(u16::from_be_bytes([self.ip[2], self.ip[3]]));
        size > usize::from(self.ip[0] & 15) * 4 + usize::from(self.tcp[12] >> 4) * 4
    }
}
