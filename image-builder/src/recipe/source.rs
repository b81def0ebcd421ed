//! One file of those that make a recipe: places in it, and files beside it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use toml::Spanned;

use super::At;
use super::written::Written;
use crate::place::{self, Fault, MAX_TEXT, Place};

/// The largest file that lies beside a recipe.
const MAX_SOURCE: u64 = 64 << 20;

/// One file of those that make a recipe.
pub(super) struct Source {
    /// The file.
    pub(super) file: PathBuf,
    /// What it says.
    pub(super) text: String,
}

impl Source {
    pub(super) fn parse(file: &Path, text: String) -> Result<(Source, Written)> {
        let written: Written = toml::from_str(&text).map_err(|error| place::fault_of(file, &text, &error))?;
        Ok((Source { file: file.into(), text }, written))
    }

    pub(super) fn at<T, U>(&self, word: &Spanned<T>, value: U) -> At<U> {
        At { place: self.place(word), value }
    }

    pub(super) fn word(&self, word: &Spanned<String>) -> At<String> {
        self.at(word, word.get_ref().clone())
    }

    pub(super) fn place<T>(&self, word: &Spanned<T>) -> Place {
        Place::of(&self.file, &self.text, word.span())
    }

    /// Permission bits from octal text.
    pub(super) fn mode(&self, mode: &Spanned<String>) -> Result<u32, Fault> {
        let bits = u32::from_str_radix(mode.get_ref(), 8).ok().filter(|bits| *bits <= 0o7777);
        bits.ok_or_else(|| {
            self.place(mode).fault(format!("mode {:?} is no octal number of at most 7777", mode.get_ref()))
        })
    }

    /// The bytes of a file that lies beside the recipe, or below.
    pub(super) fn beside(&self, name: &Spanned<String>) -> Result<Vec<u8>> {
        let place = self.place(name);
        let file = self.below(Path::new(name.get_ref()));
        let file =
            file.ok_or_else(|| place.fault(format!("{:?} leads out of the recipe's directory", name.get_ref())))?;
        let failed = |why: String| place.fault(format!("read {}: {why}", file.display()));
        let mut bytes = Vec::new();
        let read = File::open(&file).and_then(|file| file.take(MAX_SOURCE + 1).read_to_end(&mut bytes));
        let length = read.map_err(|error| failed(error.to_string()))?;
        ensure!(length as u64 <= MAX_SOURCE, failed(format!("more than {MAX_SOURCE} bytes")));
        Ok(bytes)
    }

    /// The file at `path` below this one's directory, unless it is elsewhere. Links, too, may not lead out.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        let dir = self.file.parent()?;
        let file = dir.join(path);
        let is_outside =
            |real: PathBuf| Path::new(".").join(dir).canonicalize().is_ok_and(|dir| !real.starts_with(dir));
        let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        (is_plain && !file.canonicalize().is_ok_and(is_outside)).then_some(file)
    }
}

/// A text of bounded size.
///
/// # Errors
/// A file that can't be read, is too large or not UTF-8.
pub fn read_text(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = File::open(file).and_then(|file| file.take(MAX_TEXT + 1).read_to_string(&mut text));
    let length = read.with_context(|| format!("read {}", file.display()))?;
    ensure!(length as u64 <= MAX_TEXT, "{} has more than {MAX_TEXT} bytes", file.display());
    Ok(text)
}
