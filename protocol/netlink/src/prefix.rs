//! An address with the length of its network's prefix.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `address/length`, as it was given: the host's bits may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// How many of its bits name the network.
    pub length: u8,
}

impl Prefix {
    /// `None` if `length` is more than the address has bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        (length <= bits(address)).then_some(Prefix { address, length })
    }

    /// The address alone.
    pub fn host(address: IpAddr) -> Prefix {
        Prefix { address, length: bits(address) }
    }

    /// Everything, in the family of `address`.
    pub fn everything(v6: bool) -> Prefix {
        let address = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Prefix { address, length: 0 }
    }

    /// With the host's bits cleared, as the kernel wants a route's destination.
    pub fn network(self) -> Prefix {
        let host_bits = u32::from(bits(self.address) - self.length.min(bits(self.address)));
        let address = match self.address {
            IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(host_bits).unwrap_or(0)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0)).into(),
        };
        Prefix { address, length: self.length }
    }

    /// The network's broadcast address, where it has one.
    pub fn broadcast(self) -> Option<Ipv4Addr> {
        match self.address {
            IpAddr::V4(v4) if self.length < 31 => {
                Some(Ipv4Addr::from_bits(v4.to_bits() | u32::MAX.checked_shr(self.length.into()).unwrap_or(0)))
            }
            _ => None,
        }
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = &'static str;

    /// `address` or `address/length`.
    fn from_str(text: &str) -> Result<Prefix, Self::Err> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address = address.parse().map_err(|_| "is not an IP address")?;
        match length {
            None => Ok(Prefix::host(address)),
            Some(length) => parse_length(address, length),
        }
    }
}

/// The prefix of `address` whose length is written apart from it.
///
/// # Errors
/// A length that is none, or too long.
pub fn parse_length(address: IpAddr, length: &str) -> Result<Prefix, &'static str> {
    length.parse().ok().and_then(|length| Prefix::new(address, length)).ok_or("has no prefix length that fits it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn the_network_of_a_prefix_has_no_host_bits() {
        for (given, network) in [
            ("10.1.2.3/24", "10.1.2.0/24"),
            ("10.1.2.3/32", "10.1.2.3/32"),
            ("10.1.2.3/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::1:2/64", "fd00::/64"),
            ("fd00::1/0", "::/0"),
            ("fd00::1", "fd00::1/128"),
        ] {
            assert_eq!(prefix(given).network().to_string(), network);
        }
    }

    #[test]
    fn only_ipv4_networks_with_room_have_a_broadcast_address() {
        assert_eq!(prefix("10.1.2.3/24").broadcast(), Some(Ipv4Addr::new(10, 1, 2, 255)));
        assert_eq!(prefix("10.1.2.3/0").broadcast(), Some(Ipv4Addr::BROADCAST));
        assert_eq!(prefix("10.1.2.3/31").broadcast(), None);
        assert_eq!(prefix("fd00::1/64").broadcast(), None);
    }

    #[test]
    fn what_is_no_prefix_is_refused() {
        for bad in ["", "/", "10.0.0.1/", "10.0.0.1/33", "::/129", "10.0.0.1/-1", "eth0", "10.0.0/8"] {
            assert!(bad.parse::<Prefix>().is_err(), "{bad}");
        }
    }
}
