//! Which helpers there are to be: a table of the guest's image, which its recipe writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where images have it.
const TABLE: &str = "/etc/nacre/helpers.json";

/// The largest table, and the most helpers.
const MAX_TABLE: u64 = 1 << 20;
const MAX_HELPERS: usize = 32;

/// One helper.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Helper {
    /// Its name in the log and in metrics.
    pub name: String,
    /// Its program.
    pub program: PathBuf,
    /// The arguments after the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// The environment besides `PATH`.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The user that it runs as; root without one.
    #[serde(default)]
    pub uid: u32,
    /// And the group.
    #[serde(default)]
    pub gid: u32,
    /// When it is started anew.
    #[serde(default)]
    pub restart: Restart,
    /// The UNIX socket at which it is ready as soon as it is there.
    pub ready: Option<PathBuf>,
    /// Helpers that must be ready before this one starts.
    #[serde(default)]
    pub after: Vec<String>,
    /// How readily the kernel kills it for want of memory, from -997 to 1000.
    #[serde(default)]
    pub oom_score_adj: i32,
}

/// When a helper that has ended is started anew.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
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

/// The table can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It can't be read.
    #[error("read {TABLE}")]
    Read(#[source] io::Error),
    /// It is no table.
    #[error("{TABLE} is no list of helpers")]
    Json(#[source] serde_json::Error),
    /// There are too many.
    #[error("{TABLE}: more than {MAX_HELPERS} helpers")]
    TooMany,
    /// One makes no sense.
    #[error("{TABLE}: helper {name:?}: {reason}")]
    Invalid {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// The helpers of the image whose root is `root`, in an order in which they can start.
pub fn of_image(root: &Path) -> Result<Vec<Helper>, Error> {
    let mut text = String::new();
    match File::open(root.join(TABLE.trim_start_matches('/'))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.and_then(|file| file.take(MAX_TABLE).read_to_string(&mut text)).map_err(Error::Read)?,
    };
    parse(&text)
}

pub(super) fn parse(text: &str) -> Result<Vec<Helper>, Error> {
    let helpers: Vec<Helper> = serde_json::from_str(text).map_err(Error::Json)?;
    if helpers.len() > MAX_HELPERS {
        return Err(Error::TooMany);
    }
    for (index, helper) in helpers.iter().enumerate() {
        let is_known = helpers.iter().take(index).any(|other| other.name == helper.name);
        if let Some(reason) = helper.fault().or(is_known.then_some("there are two of that name")) {
            return Err(Error::Invalid { name: helper.name.clone(), reason });
        }
    }
    in_order(helpers)
}

impl Helper {
    fn fault(&self) -> Option<&'static str> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(plain) {
            return Some("a name has small letters, digits and -, at most 64");
        }
        if !self.program.is_absolute() || self.ready.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Some("a program and a socket are named by whole paths");
        }
        (!(-997..=1000).contains(&self.oom_score_adj)).then_some("oom_score_adj is not between -997 and 1000")
    }
}

/// Each after those that it is to start after.
fn in_order(mut helpers: Vec<Helper>) -> Result<Vec<Helper>, Error> {
    let mut ordered: Vec<Helper> = Vec::new();
    while let Some(first) = helpers.first() {
        let is_next = |helper: &Helper| helper.after.iter().all(|name| ordered.iter().any(|other| other.name == *name));
        let Some(index) = helpers.iter().position(is_next) else {
            let reason = "it is to start after one that is not there, or that is to start after it";
            return Err(Error::Invalid { name: first.name.clone(), reason });
        };
        ordered.push(helpers.remove(index));
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_start_after_those_that_they_need() {
        let text = r#"[{"name": "c", "program": "/c", "after": ["b", "a"]}, {"name": "a", "program": "/a"},
                       {"name": "b", "program": "/b", "after": ["a"], "restart": "always"}]"#;
        let helpers = parse(text).unwrap();
        assert_eq!(helpers.iter().map(|helper| helper.name.as_str()).collect::<String>(), "abc");
        assert_eq!(
            helpers.iter().map(|helper| helper.restart).collect::<Vec<_>>(),
            [Restart::OnFailure, Restart::Always, Restart::OnFailure]
        );
    }

    /// As image-builder writes it.
    #[test]
    fn a_recipes_helper_is_read_whole() {
        let text = r#"[{"name":"a","program":"/usr/bin/a","args":["-x"],"env":{"K":"V"},"uid":1,"gid":2,"restart":"never","ready":null,"after":[],"oom_score_adj":3}]"#;
        let expected = Helper {
            name: "a".into(),
            program: "/usr/bin/a".into(),
            args: vec!["-x".into()],
            env: BTreeMap::from([("K".into(), "V".into())]),
            uid: 1,
            gid: 2,
            restart: Restart::Never,
            ready: None,
            after: Vec::new(),
            oom_score_adj: 3,
        };
        assert_eq!(parse(text).unwrap(), [expected]);
    }

    #[test]
    fn a_table_that_makes_no_sense_says_where() {
        for (text, reason) in [
            ("{}", "is no list of helpers"),
            (r#"[{"name": "a", "program": "/a", "frob": 1}]"#, "is no list of helpers"),
            (r#"[{"name": "a", "program": "a"}]"#, "whole paths"),
            (r#"[{"name": "A", "program": "/a"}]"#, "small letters"),
            (r#"[{"name": "a", "program": "/a"}, {"name": "a", "program": "/b"}]"#, "two of that name"),
            (r#"[{"name": "a", "program": "/a", "after": ["b"]}]"#, "is not there"),
            (r#"[{"name": "a", "program": "/a", "after": ["a"]}]"#, "is not there"),
            (r#"[{"name": "a", "program": "/a", "oom_score_adj": -998}]"#, "oom_score_adj"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let many: Vec<_> = (0..33).map(|n| format!(r#"{{"name": "h{n}", "program": "/a"}}"#)).collect();
        assert!(matches!(parse(&format!("[{}]", many.join(","))), Err(Error::TooMany)));
    }

    #[test]
    fn an_image_without_a_table_has_no_helpers() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(of_image(root.path()).unwrap(), []);
        std::fs::create_dir_all(root.path().join("etc/nacre/helpers.json")).unwrap();
        assert!(matches!(of_image(root.path()), Err(Error::Read(_))));
    }
}
