//! Places in the texts that people write, and what is wrong there.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The largest recipe or lock.
pub const MAX_TEXT: u64 = 1 << 20;

/// How like two words must be for one to be taken for the other's typo, from 0 to 1.
const ALIKE: f64 = 0.8;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    file: PathBuf,
    line: usize,
    column: usize,
}

/// A text that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {what}")]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

impl Place {
    /// Where `span` begins in the `text` of `file`.
    pub fn of(file: &Path, text: &str, span: Range<usize>) -> Place {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Place { file: file.into(), line, column }
    }

    /// What is wrong here.
    pub fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { place: self.clone(), what: what.into() }
    }
}

/// What TOML's parser says of the `text` of `file`, with the word that was meant where one is known that is like it.
pub fn fault_of(file: &Path, text: &str, error: &toml::de::Error) -> Fault {
    let message = error.message();
    // The unknown word stands first in the message, then those that are known.
    let mut words = message.split('`').skip(1).step_by(2);
    let meant = match words.next() {
        Some(unknown) if message.starts_with("unknown ") => nearest(unknown, words),
        _ => None,
    };
    let meant = meant.map(|word| format!(" (did you mean `{word}`?)")).unwrap_or_default();
    Place::of(file, text, error.span().unwrap_or_default()).fault(format!("{message}{meant}"))
}

/// The known word that is most like `word`, if one is.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = known.map(|other| (strsim::jaro_winkler(word, other), other));
    scored.filter(|(score, _)| *score > ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_as_editors_count() {
        let at = |start| Place::of(Path::new("a.toml"), "x\näy = 1\n", start..start).to_string();
        assert_eq!((at(0), at(2), at(4)), ("a.toml:1:1".into(), "a.toml:2:1".into(), "a.toml:2:2".into()));
        assert_eq!(at(3), "a.toml:3:1"); // in the middle of a character: no place of the text's
    }

    #[test]
    fn a_typo_is_told_from_another_word() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Known {
            #[serde(rename = "packages")]
            _packages: Vec<String>,
            #[serde(rename = "programs")]
            _programs: Option<String>,
        }
        let fault =
            |text: &str| fault_of(Path::new("a"), text, &toml::from_str::<Known>(text).unwrap_err()).to_string();
        assert!(fault("\npackage = []").ends_with("(did you mean `packages`?)"), "{}", fault("\npackage = []"));
        assert!(fault("\npackage = []").starts_with("a:2:1: unknown field `package`"));
        assert!(!fault("colour = 1").contains("did you mean"));
        assert!(fault("packages = [1]").starts_with("a:1:13: "), "{}", fault("packages = [1]"));
    }
}
