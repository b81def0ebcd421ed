//! Sizes and processor counts, as people write them.

use std::fmt;
use std::str::FromStr;

const MIB: u64 = 1 << 20;

/// What a text was expected to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Not a size.
    #[error("write a size as a number with K, M, G or T, as in 512M or 1.5G")]
    Size,
    /// Not a number of processors.
    #[error("write the number of processors as a decimal number from 0.01 to 255, as in 2 or 0.5")]
    Cpus,
}

/// An amount of memory in bytes. The letters are powers of 1024; a bare number is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// This many MiB.
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(MIB))
    }

    /// This many bytes, which may be none.
    pub const fn of(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In whole MiB, rounded up.
    pub const fn as_mib(self) -> u64 {
        self.0.div_ceil(MIB)
    }
}

impl FromStr for Size {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "ki" | "kib" => 10,
            "m" | "mb" | "mi" | "mib" => 20,
            "g" | "gb" | "gi" | "gib" => 30,
            "t" | "tb" | "ti" | "tib" => 40,
            _ => return Err(ParseError::Size),
        };
        let number: f64 = number.parse().map_err(|_| ParseError::Size)?;
        let bytes = number * (1_u64 << shift) as f64;
        // Beyond 2^53 a float no longer counts bytes, and no host has that much memory.
        if bytes.is_finite() && (1.0..9e15).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(ParseError::Size) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let decimals = usize::from(unit > 0 && value < 100.0);
        write!(f, "{value:.decimals$} {}", UNITS[unit])
    }
}

/// A number of processors; fractions become a quota.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpus(f64);

impl Cpus {
    /// The CFS period that quotas are given for, in µs: the kernel's default.
    pub const PERIOD_US: u64 = 100_000;

    /// Virtual CPUs that the VM needs.
    pub fn whole(self) -> u8 {
        self.0.ceil().clamp(1.0, 255.0) as u8
    }

    /// The quota for one period in µs, if the number is not whole.
    pub fn quota_us(self) -> Option<i64> {
        (self.0.fract() != 0.0).then(|| (self.0 * Self::PERIOD_US as f64).round() as i64)
    }
}

impl FromStr for Cpus {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number: f64 = text.trim().parse().map_err(|_| ParseError::Cpus)?;
        if (0.01..=255.0).contains(&number) { Ok(Self(number)) } else { Err(ParseError::Cpus) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        for (text, bytes) in
            [("1048576", 1 << 20), ("512M", 512 << 20), ("1.5G", 3 << 29), ("2gib", 2 << 30), ("64 k", 65536)]
        {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for text in ["", "M", "-1M", "1X", "1e5", "0", "99999999T", "1..5M", "NaN"] {
            assert_eq!(text.parse::<Size>(), Err(ParseError::Size), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        let shown: Vec<_> = [512, 1 << 20, 155 << 20, 3 << 29].map(|n| Size(n).to_string()).into();
        assert_eq!(shown, ["512 B", "1.0 MiB", "155 MiB", "1.5 GiB"]);
    }

    #[test]
    fn fractions_of_a_processor_become_a_quota() {
        let half: Cpus = "1.5".parse().unwrap();
        assert_eq!((half.whole(), half.quota_us()), (2, Some(150_000)));
        let two: Cpus = "2".parse().unwrap();
        assert_eq!((two.whole(), two.quota_us()), (2, None));
        for text in ["0", "-1", "256", "x", "NaN", "inf"] {
            assert_eq!(text.parse::<Cpus>(), Err(ParseError::Cpus), "{text}");
        }
    }
}
