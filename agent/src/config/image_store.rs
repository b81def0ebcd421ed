//! Where image layers are to be kept, as the kernel's command line says it.

/// What layers are kept in, with what containers write to their images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageStore {
    /// The guest's memory.
    Memory,
    /// The guest's memory, compressed.
    Zram,
    /// A disk of the host's, encrypted.
    Disk,
}

/// `memory`, `zram` or `disk`.
pub fn parse(value: &str) -> Result<Option<ImageStore>, &'static str> {
    match value {
        "memory" => Ok(Some(ImageStore::Memory)),
        "zram" => Ok(Some(ImageStore::Zram)),
        "disk" => Ok(Some(ImageStore::Disk)),
        _ => Err("not a place for images (memory, zram, disk)"),
    }
}

/// A number of bytes; K, M, G and T are powers of 1024.
pub fn size(value: &str) -> Result<Option<u64>, &'static str> {
    let (number, shift) = match value.char_indices().last() {
        Some((end, unit)) if !unit.is_ascii_digit() => match unit.to_ascii_uppercase() {
            'K' => (value.get(..end), 10),
            'M' => (value.get(..end), 20),
            'G' => (value.get(..end), 30),
            'T' => (value.get(..end), 40),
            _ => (None, 0),
        },
        _ => (Some(value), 0),
    };
    let number = number.and_then(|digits| digits.parse::<u64>().ok()).and_then(|n| n.checked_mul(1 << shift));
    number.filter(|bytes| *bytes > 0).map(Some).ok_or("not a size (512M, 4G)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("1", 1), ("4096", 4096), ("3k", 3 << 10), ("512M", 512 << 20), ("2G", 2 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(size(text), Ok(Some(bytes)), "{text}");
        }
        for text in ["", "0", "M", "-1", "1.5G", "1X", "1ä", "99999999999999T", "18446744073709551616"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
