//! Chance that can be had again.

/// splitmix64: the same number at the beginning makes the same choices.
#[derive(Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % limit
    }

    /// Up to `limit` bytes of any kind.
    pub fn bytes(&mut self, limit: u64) -> Vec<u8> {
        (0..self.below(limit + 1)).map(|_| u8::try_from(self.below(256)).unwrap_or_default()).collect()
    }

    /// `bytes` with a few of them changed, taken out or put in.
    pub fn mutated(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(4) {
            let at = usize::try_from(self.below(bytes.len() as u64 + 1)).unwrap_or_default();
            let new = self.bytes(8);
            let end = bytes.len().min(at + usize::try_from(self.below(8)).unwrap_or_default());
            bytes.splice(at..end, new);
        }
        bytes
    }
}
