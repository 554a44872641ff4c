//! The few packets that the relay reads and writes by itself: the first of a TCP connection, which it holds back until
//! it knows how its peer answers, and the refusals that an instance gets when the peer does not. Pure functions.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const SYN: u8 = 0x02;
const RESET_ACK: u8 = 0x14;
const ACK: u8 = 0x10;

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct First {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    sequence: u32,
    /// As it came, with a checksum that is right: on a link within one machine nobody computes it.
    pub(crate) packet: Vec<u8>,
}

/// Why an instance's packet goes nowhere, as a router says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// What a router would have said where this machine's kernel says `error`.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error()? {
            libc::ENETUNREACH => Some(Self::Network),
            libc::EHOSTUNREACH => Some(Self::Host),
            libc::ECONNREFUSED => Some(Self::Port),
            libc::EACCES | libc::EPERM => Some(Self::Prohibited),
            _ => None,
        }
    }
}

fn sixteen(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Where the transport's header begins, and the addresses. None: not a whole packet of `protocol` in one piece.
fn network(packet: &[u8], protocol: u8) -> Option<(usize, IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let begin = usize::from(packet[0] & 0xf) * 4;
            let fragment = sixteen(packet, 6)? & 0x3fff;
            let whole = usize::from(sixteen(packet, 2)?) == packet.len();
            if begin < 20 || packet.len() < begin || !whole || fragment != 0 || packet[9] != protocol {
                return None;
            }
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            Some((begin, address(12)?, address(16)?))
        }
        6 => {
            let whole = usize::from(sixteen(packet, 4)?) + 40 == packet.len();
            if !whole || packet[6] != protocol {
                return None;
            }
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            Some((40, address(8)?, address(24)?))
        }
        _ => None,
    }
}

/// Reads a packet that begins a TCP connection. None: it is something else, or broken.
pub(crate) fn first(packet: &[u8]) -> Option<First> {
    let (begin, from, to) = network(packet, TCP)?;
    let segment = &packet[begin..];
    if segment.len() < 20 || segment[13] & (SYN | ACK) != SYN {
        return None;
    }
    let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
    let (from, to) = (
        SocketAddr::new(from, sixteen(segment, 0)?),
        SocketAddr::new(to, sixteen(segment, 2)?),
    );
    let mut packet = packet.to_vec();
    packet[begin + 16..begin + 18].fill(0);
    let sum = checksum(&[&pseudo(from.ip(), to.ip(), TCP, packet.len() - begin), &packet[begin..]]);
    packet[begin + 16..begin + 18].copy_from_slice(&sum.to_be_bytes());
    Some(First {
        from,
        to,
        sequence,
        packet,
    })
}

/// What the peer's machine sends when nobody listens.
pub(crate) fn reset(first: &First) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(first.to.port().to_be_bytes());
    segment.extend(first.from.port().to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(first.sequence.wrapping_add(1).to_be_bytes());
    segment.extend([5 << 4, RESET_ACK]);
    segment.extend([0; 6]);
    packet(first.to.ip(), first.from.ip(), TCP, segment, 16)
}

/// What a router on the way says of the first packet of a connection.
pub(crate) fn unreachable(first: &First, why: Unreachable) -> Vec<u8> {
    // The header and 8 bytes are what a sender recognises its packet by.
    let begin = if first.from.is_ipv4() {
        usize::from(first.packet[0] & 0xf) * 4
    } else {
        40
    };
    refusal(first.from.ip(), first.to.ip(), &first.packet[..begin + 8], why)
}

/// The same of a datagram of UDP that `from` sent.
pub(crate) fn datagram_unreachable(from: SocketAddr, to: SocketAddr, why: Unreachable) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8);
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    datagram.extend(8_u16.to_be_bytes());
    datagram.extend([0; 2]);
    let cited = packet(from.ip(), to.ip(), UDP, datagram, 6);
    refusal(from.ip(), to.ip(), &cited, why)
}

fn refusal(from: IpAddr, to: IpAddr, cited: &[u8], why: Unreachable) -> Vec<u8> {
    // RFC 792 and RFC 4443: type, code.
    let (protocol, kind, code) = match (to, why) {
        (IpAddr::V4(_), Unreachable::Network) => (ICMP, 3, 0),
        (IpAddr::V4(_), Unreachable::Host) => (ICMP, 3, 1),
        (IpAddr::V4(_), Unreachable::Port) => (ICMP, 3, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (ICMP, 3, 13),
        (IpAddr::V6(_), Unreachable::Network) => (ICMPV6, 1, 0),
        (IpAddr::V6(_), Unreachable::Prohibited) => (ICMPV6, 1, 1),
        (IpAddr::V6(_), Unreachable::Host) => (ICMPV6, 1, 3),
        (IpAddr::V6(_), Unreachable::Port) => (ICMPV6, 1, 4),
    };
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(cited);
    packet(to, from, protocol, message, 2)
}

/// A packet with `payload`, whose checksum is at `sum_at`.
fn packet(from: IpAddr, to: IpAddr, protocol: u8, mut payload: Vec<u8>, sum_at: usize) -> Vec<u8> {
    // ICMP of IPv4 is the one that does not count the addresses in.
    let sum = match protocol {
        ICMP => checksum(&[&payload]),
        _ => checksum(&[&pseudo(from, to, protocol, payload.len()), &payload]),
    };
    payload[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    let length = |header: usize| {
        u16::try_from(payload.len() + header)
            .expect("some tens of bytes")
            .to_be_bytes()
    };
    let mut whole = Vec::with_capacity(payload.len() + 40);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            whole.extend([0x45, 0]);
            whole.extend(length(20));
            whole.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            whole.extend(from.octets());
            whole.extend(to.octets());
            let sum = checksum(&[&whole]);
            whole[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            whole.extend([0x60, 0, 0, 0]);
            whole.extend(length(0));
            whole.extend([protocol, 64]);
            whole.extend(from.octets());
            whole.extend(to.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("both of one packet"),
    }
    whole.extend(payload);
    whole
}

/// What a checksum of the transport counts beside its own bytes.
fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a packet").to_be_bytes();
    let mut bytes = Vec::with_capacity(40);
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend(length);
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The internet's checksum (RFC 1071) of parts of which all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn syn(from: &str, to: &str) -> Vec<u8> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("one"), to.parse().expect("one"));
        let mut segment = Vec::new();
        segment.extend(from.port().to_be_bytes());
        segment.extend(to.port().to_be_bytes());
        segment.extend(7_u32.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend([5 << 4, SYN]);
        segment.extend([0; 6]);
        packet(from.ip(), to.ip(), TCP, segment, 16)
    }

    /// A checksum over what has the right one is 0.
    fn is_whole(packet: &[u8], protocol: u8) -> bool {
        let (begin, from, to) = network(packet, protocol).expect("a packet");
        let body = &packet[begin..];
        let of_body = match protocol {
            ICMP => checksum(&[body]),
            _ => checksum(&[&pseudo(from, to, protocol, body.len()), body]),
        };
        of_body == 0 && (begin == 40 || checksum(&[&packet[..begin]]) == 0)
    }

    #[test]
    fn a_first_packet_is_read_and_made_whole() {
        for (from, to) in [
            ("198.18.0.1:40000", "8.8.8.8:443"),
            ("[fd68::1]:40000", "[2600::1]:443"),
        ] {
            let right = syn(from, to);
            assert!(is_whole(&right, TCP));
            let mut unfinished = right.clone();
            let sum = right.len() - 4;
            unfinished[sum..sum + 2].copy_from_slice(&[1, 2]);
            let read = first(&unfinished).expect("a first packet");
            assert_eq!(
                (read.from.to_string(), read.to.to_string()),
                (from.to_owned(), to.to_owned())
            );
            assert_eq!(read.packet, right);

            let reset = reset(&read);
            assert!(is_whole(&reset, TCP));
            assert_eq!(reset.len(), right.len());
            assert_eq!(reset[reset.len() - 12..reset.len() - 8], 8_u32.to_be_bytes());
            let protocol = if read.from.is_ipv4() { ICMP } else { ICMPV6 };
            for why in [
                Unreachable::Network,
                Unreachable::Host,
                Unreachable::Port,
                Unreachable::Prohibited,
            ] {
                assert!(is_whole(&unreachable(&read, why), protocol), "{why:?}");
                assert!(
                    is_whole(&datagram_unreachable(read.from, read.to, why), protocol),
                    "{why:?}"
                );
            }
        }
    }

    #[test]
    fn others_are_left_alone() {
        let right = syn("198.18.0.1:40000", "8.8.8.8:443");
        let changed = |at: usize, to: u8| {
            let mut packet = right.clone();
            packet[at] = to;
            packet
        };
        assert!(first(&right).is_some());
        assert_eq!(first(&changed(33, 0x12)), None, "an answer");
        assert_eq!(first(&changed(33, 0x10)), None, "a later one");
        assert_eq!(first(&changed(9, UDP)), None);
        assert_eq!(first(&changed(6, 0x20)), None, "a fragment");
        assert_eq!(first(&changed(7, 1)), None, "a later fragment");
        assert_eq!(first(&changed(0, 0x44)), None, "a short header");
        assert_eq!(first(&changed(0, 0x4f)), None, "a header beyond the end");
        assert_eq!(first(&changed(3, 41)), None, "more than there is");
    }

    proptest! {
        #[test]
        fn nothing_that_comes_breaks_it(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), version in 0..3_u8) {
            if let Some(head) = bytes.first_mut() {
                *head = match version { 0 => 0x45, 1 => 0x60, _ => *head };
            }
            // So that some are taken for whole.
            if bytes.len() > 60 {
                let length = u16::try_from(bytes.len()).expect("short");
                match version {
                    0 => { bytes[2..4].copy_from_slice(&length.to_be_bytes()); bytes[6..8].fill(0); bytes[9] = TCP; bytes[33] = SYN; }
                    1 => { bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes()); bytes[6] = TCP; bytes[53] = SYN; }
                    _ => {}
                }
            }
            if let Some(read) = first(&bytes) {
                prop_assert!(is_whole(&reset(&read), TCP));
                let protocol = if read.from.is_ipv4() { ICMP } else { ICMPV6 };
                prop_assert!(is_whole(&unreachable(&read, Unreachable::Host), protocol));
            }
        }
    }
}
