//! Which addresses an instance may call, as a rule about the address alone: the public internet and nothing else. A pure
//! function; the kernel's table of rules is made from the same lists.
//!
//! The ranges are those that IANA's registries of special-purpose addresses (RFC 6890) call not globally reachable, and
//! whatever of IPv6 is not global unicast. Addresses of IPv6 that carry one of IPv4 (6to4, NAT64) are as good as the one
//! they carry. Whether an address is the machine's own is not seen here but in `outside`, which asks the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first `length` bits of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix<A> {
    pub(crate) address: A,
    pub(crate) length: u8,
}

const fn four(a: u8, b: u8, c: u8, length: u8) -> Prefix<Ipv4Addr> {
    Prefix {
        address: Ipv4Addr::new(a, b, c, 0),
        length,
    }
}

const fn six(a: u16, b: u16, c: u16, length: u8) -> Prefix<Ipv6Addr> {
    Prefix {
        address: Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0),
        length,
    }
}

const FORBIDDEN_V4: [Prefix<Ipv4Addr>; 15] = [
    four(0, 0, 0, 8),       // this network
    four(10, 0, 0, 8),      // private
    four(100, 64, 0, 10),   // shared by carriers
    four(127, 0, 0, 8),     // loopback
    four(169, 254, 0, 16),  // link-local, and the metadata servers of clouds
    four(172, 16, 0, 12),   // private
    four(192, 0, 0, 24),    // protocols of the IETF
    four(192, 0, 2, 24),    // documentation
    four(192, 88, 99, 24),  // 6to4 relays
    four(192, 168, 0, 16),  // private
    four(198, 18, 0, 15),   // benchmarks; the instances' own addresses are in it
    four(198, 51, 100, 24), // documentation
    four(203, 0, 113, 24),  // documentation
    four(224, 0, 0, 4),     // multicast
    four(240, 0, 0, 4),     // reserved, and the broadcast
];

/// Global unicast; outside of it only [`NAT64`] is reached.
pub(crate) const GLOBAL_V6: Prefix<Ipv6Addr> = six(0x2000, 0, 0, 3);

/// The rest carries an address of IPv4 in its last 32 bits (RFC 6052).
pub(crate) const NAT64: Prefix<Ipv6Addr> = six(0x64, 0xff9b, 0, 96);

/// Carries an address of IPv4 in the 32 bits after it (RFC 3056).
const SIX_TO_FOUR: Prefix<Ipv6Addr> = six(0x2002, 0, 0, 16);

/// Within global unicast.
const FORBIDDEN_V6: [Prefix<Ipv6Addr>; 3] = [
    six(0x2001, 0, 0, 23),     // protocols of the IETF, Teredo and benchmarks among them
    six(0x2001, 0xdb8, 0, 32), // documentation
    six(0x3fff, 0, 0, 20),     // documentation
];

impl Prefix<Ipv4Addr> {
    fn holds(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
        address.to_bits() & mask == self.address.to_bits()
    }
}

impl Prefix<Ipv6Addr> {
    fn holds(self, address: Ipv6Addr) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
        address.to_bits() & mask == self.address.to_bits()
    }
}

/// Whether an instance may call `address`, as far as the address tells.
pub(crate) fn allowed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => allowed_v4(address),
        IpAddr::V6(address) => allowed_v6(address),
    }
}

fn allowed_v4(address: Ipv4Addr) -> bool {
    !FORBIDDEN_V4.iter().any(|prefix| prefix.holds(address))
}

fn allowed_v6(address: Ipv6Addr) -> bool {
    let carried = |shift: u32| {
        let bits = (address.to_bits() >> shift) & u128::from(u32::MAX);
        Ipv4Addr::from_bits(u32::try_from(bits).expect("masked to 32 bits"))
    };
    if NAT64.holds(address) {
        return allowed_v4(carried(0));
    }
    if SIX_TO_FOUR.holds(address) {
        return allowed_v4(carried(80));
    }
    GLOBAL_V6.holds(address) && !FORBIDDEN_V6.iter().any(|prefix| prefix.holds(address))
}

/// Every prefix of IPv4 that is refused.
pub(crate) fn forbidden_v4() -> impl Iterator<Item = Prefix<Ipv4Addr>> {
    FORBIDDEN_V4.into_iter()
}

/// Every prefix of IPv6 that is refused within [`GLOBAL_V6`] and [`NAT64`].
pub(crate) fn forbidden_v6() -> impl Iterator<Item = Prefix<Ipv6Addr>> {
    let carrying = |carrier: Prefix<Ipv6Addr>, shift: u32| {
        FORBIDDEN_V4.into_iter().map(move |four| Prefix {
            address: Ipv6Addr::from_bits(carrier.address.to_bits() | (u128::from(four.address.to_bits()) << shift)),
            length: carrier.length + four.length,
        })
    };
    FORBIDDEN_V6
        .into_iter()
        .chain(carrying(NAT64, 0))
        .chain(carrying(SIX_TO_FOUR, 80))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses() {
        let cases = [
            ("8.8.8.8", true),
            ("1.1.1.1", true),
            ("11.0.0.1", true),
            ("9.255.255.255", true),
            ("172.15.255.255", true),
            ("172.32.0.0", true),
            ("100.63.255.255", true),
            ("100.128.0.0", true),
            ("198.17.255.255", true),
            ("198.20.0.0", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.0", false),
            ("10.255.255.255", false),
            ("100.64.0.1", false),
            ("127.0.0.1", false),
            ("127.255.0.53", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.8", false),
            ("192.0.2.1", false),
            ("192.168.0.1", false),
            ("198.18.0.5", false),
            ("198.19.255.255", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700:4700::1111", true),
            ("2a00:1450::1", true),
            ("::", false),
            ("::1", false),
            ("::ffff:8.8.8.8", false),
            ("::ffff:127.0.0.1", false),
            ("::8.8.8.8", false),
            ("64:ff9b::8.8.8.8", true),
            ("64:ff9b::10.0.0.1", false),
            ("64:ff9b::127.0.0.1", false),
            ("64:ff9b:1::8.8.8.8", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2002:808:808::1", true),
            ("2002:a00:1::1", false),
            ("2002:c0a8:101::1", false),
            ("2002:7f00:1::1", false),
            ("3fff::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd68:6f6d:6572:756e::1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ];
        for (address, right) in cases {
            assert_eq!(allowed(address.parse().expect("an address")), right, "{address}");
        }
    }

    proptest! {
        /// The two ways to say it, for the kernel and for ourselves, mean the same.
        #[test]
        fn the_prefixes_say_what_the_function_says(
            bits in prop_oneof![
                any::<u128>(),
                any::<u128>().prop_map(|b| (b >> 3) | (1 << 125)),
                any::<u32>().prop_map(|b| NAT64.address.to_bits() | u128::from(b)),
                any::<u128>().prop_map(|b| (b >> 16) | SIX_TO_FOUR.address.to_bits()),
                (0..33_usize, any::<u128>()).prop_map(|(n, b)| {
                    let prefix = forbidden_v6().nth(n).expect("33 of them");
                    prefix.address.to_bits() | b.checked_shr(u32::from(prefix.length)).unwrap_or(0)
                }),
            ]
        ) {
            let six = Ipv6Addr::from_bits(bits);
            let of_lists = (GLOBAL_V6.holds(six) || NAT64.holds(six)) && !forbidden_v6().any(|p| p.holds(six));
            prop_assert_eq!(of_lists, allowed(IpAddr::V6(six)));
        }

        #[test]
        fn a_carried_address_is_as_good_as_itself(bits in any::<u32>()) {
            let four = Ipv4Addr::from_bits(bits);
            let nat64 = Ipv6Addr::from_bits(NAT64.address.to_bits() | u128::from(bits));
            let six_to_four = Ipv6Addr::from_bits(SIX_TO_FOUR.address.to_bits() | (u128::from(bits) << 80) | 1);
            prop_assert_eq!(allowed(IpAddr::V4(four)), allowed(IpAddr::V6(nat64)));
            prop_assert_eq!(allowed(IpAddr::V4(four)), allowed(IpAddr::V6(six_to_four)));
            prop_assert!(!allowed(IpAddr::V6(four.to_ipv6_mapped())));
            prop_assert_eq!(allowed(IpAddr::V4(four)), !forbidden_v4().any(|p| p.holds(four)));
        }
    }
}
