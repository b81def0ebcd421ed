//! Names of containers.

/// The longest name.
pub const MAX_LENGTH: usize = 255;

/// A container's name, which is a directory's and a cgroup's too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    /// Check `text`.
    pub fn parse(text: &str) -> Result<ContainerId, String> {
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let goes_on = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-+".contains(&b));
        if begins && goes_on && text.len() <= MAX_LENGTH {
            return Ok(ContainerId(text.into()));
        }
        let shown: String = text.chars().take(64).collect();
        Err(format!(
            "Invalid container id {shown:?}: expected 1 to {MAX_LENGTH} letters, digits, _, ., - or +, the first no sign"
        ))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_directories_and_nothing_else() {
        for good in ["a", "0a.b_c-d+e", &"x".repeat(255)] {
            assert!(ContainerId::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "a\n", "ä", &"x".repeat(256)] {
            assert!(ContainerId::parse(bad).is_err(), "{bad:?}");
        }
    }
}
