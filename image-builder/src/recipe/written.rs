//! A recipe as it is written, with the places of its words. A word that is not known is an error, for a typo must not build a different guest.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::Restart;
use crate::outputs::{KernelImage, Outputs};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    pub name: Spanned<String>,
    pub description: String,
    pub extends: Option<Spanned<String>>,
    pub policy: Option<Spanned<String>>,
    pub debug: Option<bool>,
    #[serde(default)]
    pub packages: Vec<Spanned<String>>,
    #[serde(default)]
    pub usr: Usr,
    #[serde(default)]
    pub directories: Vec<Spanned<Directory>>,
    #[serde(default)]
    pub symlinks: Vec<Spanned<Symlink>>,
    #[serde(default)]
    pub files: Vec<Spanned<File>>,
    #[serde(default)]
    pub users: Vec<Spanned<User>>,
    #[serde(default)]
    pub helpers: Vec<Spanned<Helper>>,
    pub outputs: Option<Outputs>,
    #[serde(default)]
    pub kernel: Kernel,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usr {
    #[serde(default)]
    pub programs: Vec<Spanned<String>>,
    #[serde(default)]
    pub helpers: Vec<Spanned<String>>,
    pub certificates: Option<Spanned<Certificates>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificates {
    pub from: String,
    pub bundle: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    pub path: Spanned<String>,
    pub mode: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    pub path: Spanned<String>,
    pub target: Spanned<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub path: Spanned<String>,
    pub mode: Option<Spanned<String>>,
    pub content: Option<String>,
    pub source: Option<Spanned<String>>,
    pub package: Option<Spanned<String>>,
    pub from: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: Spanned<String>,
    pub uid: u32,
    pub gid: u32,
    pub home: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Helper {
    pub name: Spanned<String>,
    pub program: Spanned<String>,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    #[serde(default)]
    pub restart: Restart,
    pub ready: Option<Spanned<String>>,
    #[serde(default)]
    pub after: Vec<Spanned<String>>,
    pub oom_score_adj: Option<Spanned<i32>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    pub image: Option<KernelImage>,
    #[serde(default)]
    pub parameters: Vec<Spanned<String>>,
}
