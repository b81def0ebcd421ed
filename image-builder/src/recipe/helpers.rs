//! Processes that the agent is to run beside itself. It reads them in a table of the image and refuses a table that makes no sense; so such
//! a one is not built.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{At, Source, is_plain, written};
use crate::tree::Tree;

/// The most that the agent takes, and the longest name.
const MAX_HELPERS: usize = 32;
const MAX_NAME: usize = 64;

/// One entry of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Helper {
    name: String,
    program: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    uid: u32,
    gid: u32,
    restart: Restart,
    ready: Option<String>,
    after: Vec<String>,
    oom_score_adj: i32,
}

/// When a helper that has ended is started anew.
#[derive(Debug, Default, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whenever it ends.
    Always,
    /// When it fails.
    #[default]
    OnFailure,
    /// Never.
    Never,
}

/// One helper, as far as it makes sense alone.
pub(super) fn checked(source: &Source, helper: Spanned<written::Helper>) -> Result<At<Helper>> {
    let helper = helper.into_inner();
    let place = source.place(&helper.name);
    let is_name = is_plain(helper.name.get_ref()) && helper.name.get_ref().len() <= MAX_NAME;
    ensure!(is_name, place.fault(format!("a helper's name has small letters, digits and -, at most {MAX_NAME}")));
    for path in [Some(&helper.program), helper.ready.as_ref()].into_iter().flatten() {
        ensure!(path.get_ref().starts_with('/'), source.place(path).fault("a program and a socket are whole paths"));
    }
    let score = helper.oom_score_adj.as_ref().map_or(0, |score| *score.get_ref());
    if let Some(word) = &helper.oom_score_adj {
        ensure!((-997..=1000).contains(&score), source.place(word).fault("oom_score_adj is from -997 to 1000"));
    }
    let value = Helper {
        name: helper.name.into_inner(),
        program: helper.program.into_inner(),
        args: helper.args,
        env: helper.env,
        uid: helper.uid,
        gid: helper.gid,
        restart: helper.restart,
        ready: helper.ready.map(Spanned::into_inner),
        after: helper.after.into_iter().map(Spanned::into_inner).collect(),
        oom_score_adj: score,
    };
    Ok(At { place, value })
}

/// All helpers together, in an image with these paths.
pub(super) fn check(helpers: &[At<Helper>], image: &Tree) -> Result<()> {
    let mut ordered: Vec<&str> = Vec::new();
    let mut left: Vec<&At<Helper>> = Vec::new();
    for helper in helpers {
        let Helper { name, program, .. } = &helper.value;
        let is_new = left.iter().all(|other| other.value.name != *name);
        ensure!(is_new, helper.place.fault(format!("there is a helper {name:?} already")));
        ensure!(left.len() < MAX_HELPERS, helper.place.fault(format!("more than {MAX_HELPERS} helpers")));
        ensure!(image.contains(program), helper.place.fault(format!("its program {program} is not in the image")));
        left.push(helper);
    }
    // As the agent starts them: each after those that it needs.
    while let Some(first) = left.first() {
        let is_next = |helper: &&At<Helper>| helper.value.after.iter().all(|name| ordered.contains(&name.as_str()));
        let index = left.iter().position(is_next).ok_or_else(|| {
            let what = "it is to start after one that is not there, or that is to start after it";
            first.place.fault(format!("helper {:?}: {what}", first.value.name))
        })?;
        ordered.push(&left.remove(index).value.name);
    }
    Ok(())
}
