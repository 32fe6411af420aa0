//! The last segment of a TCP handshake, made for passt.
//!
//! passt of Debian 12 (2023-03) does not acknowledge a guest's SYN,ACK until the host's side has
//! data. A guest that is to speak first, as sshd does, then waits for ever (RFC 9293, 3.5). So the
//! network gives the guest that acknowledgement itself; one more from passt does no harm.

use super::segment::{ACK, ETHERNET_SIZE, IP_SIZE, PROTOCOL_TCP, RST, SYN, Segment, TCP_SIZE};

/// Window offered until passt says otherwise; every scale leaves room for a greeting.
const WINDOW: u16 = 0x400;

/// The acknowledgement of `frame`, if that is a SYN,ACK over IPv4.
pub(super) fn final_ack(frame: &[u8]) -> Option<Vec<u8>> {
    let segment = Segment::of(frame)?;
    if segment.flags() & (SYN | RST | ACK) != SYN | ACK {
        return None;
    }
    let Segment { ip, tcp } = segment;
    let mut answer = Vec::with_capacity(ETHERNET_SIZE + IP_SIZE + TCP_SIZE);
    answer.extend_from_slice(&frame[6..12]);
    answer.extend_from_slice(&frame[..6]);
    answer.extend_from_slice(&[8, 0]);
    answer.extend_from_slice(&ip_header(&ip[16..20], &ip[12..16]));
    answer.extend_from_slice(&tcp_header(tcp, &ip[16..20], &ip[12..16]));
    Some(answer)
}

fn ip_header(from: &[u8], to: &[u8]) -> [u8; IP_SIZE] {
    let mut header = [0; IP_SIZE];
    header[0] = 0x45;
    header[3] = (IP_SIZE + TCP_SIZE) as u8;
    header[8] = 255;
    header[9] = PROTOCOL_TCP;
    header[12..16].copy_from_slice(from);
    header[16..20].copy_from_slice(to);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn tcp_header(syn_ack: &[u8], from: &[u8], to: &[u8]) -> [u8; TCP_SIZE] {
    let mut header = [0; TCP_SIZE];
    header[..2].copy_from_slice(&syn_ack[2..4]);
    header[2..4].copy_from_slice(&syn_ack[..2]);
    header[4..8].copy_from_slice(&syn_ack[8..12]);
    let sequence = u32::from_be_bytes([syn_ack[4], syn_ack[5], syn_ack[6], syn_ack[7]]);
    header[8..12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    header[12] = (TCP_SIZE as u8 / 4) << 4;
    header[13] = ACK;
    header[14..16].copy_from_slice(&WINDOW.to_be_bytes());
    let sum = checksum(&[from, to, &[0, PROTOCOL_TCP, 0, TCP_SIZE as u8], &header]);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Internet checksum (RFC 1071) of parts of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks_exact(2));
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN,ACK as a guest sent it, ports 5000 to 36284.
    fn syn_ack() -> Vec<u8> {
        let mut frame = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 1, 2, 3, 8, 0];
        frame.extend_from_slice(&[0x45, 0, 0, 0x30, 0, 0, 0x40, 0, 0x40, 6, 0x22, 0xb8]);
        frame.extend_from_slice(&[10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend_from_slice(&[0x13, 0x88, 0x8d, 0xbc, 0xf2, 0x18, 0xe0, 0xd7]);
        frame.extend_from_slice(&[0x6e, 0x77, 0x73, 0x51, 0x70, 0x12, 0xfa, 0xf0, 0x1b, 10, 0, 0]);
        frame.extend_from_slice(&[2, 4, 5, 0xb4, 1, 3, 3, 6]);
        frame
    }

    #[test]
    fn final_ack_answers_a_syn_ack() {
        let answer = final_ack(&syn_ack()).unwrap();
        assert_eq!(answer[..6], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(answer[26..34], [10, 0, 2, 2, 10, 0, 2, 15]);
        assert_eq!(answer[34..38], [0x8d, 0xbc, 0x13, 0x88]);
        assert_eq!(answer[38..46], [0x6e, 0x77, 0x73, 0x51, 0xf2, 0x18, 0xe0, 0xd8]);
        assert_eq!(checksum(&[&answer[14..34]]), 0);
        let pseudo = [0, PROTOCOL_TCP, 0, TCP_SIZE as u8];
        assert_eq!(checksum(&[&answer[26..34], &pseudo, &answer[34..]]), 0);
    }

    #[test]
    fn final_ack_leaves_everything_else_alone() {
        let mut frame = syn_ack();
        frame[47] = ACK;
        assert_eq!(final_ack(&frame), None);
        frame[47] = SYN;
        assert_eq!(final_ack(&frame), None);
        let whole = syn_ack();
        for len in 0..54 {
            assert_eq!(final_ack(&whole[..len]), None, "{len} bytes");
        }
        frame[14] = 0x4f;
        assert_eq!(final_ack(&frame), None);
    }
}
