//! A file tree in memory, sorted by path: what an image holds, before it is any image's bytes.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory, with its permission bits.
    Directory(u32),
    /// A file: its permission bits and its bytes.
    File(u32, Vec<u8>),
    /// A symbolic link's target.
    Symlink(String),
    /// A character device: permission bits, major and minor number.
    Device(u32, u32, u32),
}

/// Paths without a leading slash, and what stands there. Owner and group are 0 everywhere, and so is every time.
#[derive(Debug, Default, Clone)]
pub struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Adds a node; directories above it appear with mode 0755.
    ///
    /// # Errors
    /// A path that is not absolute, holds `.` or `..`, is taken, or leads through what is no directory.
    pub fn add(&mut self, path: &str, node: Node) -> Result<()> {
        let Some(relative) = path.strip_prefix('/') else { bail!("{path}: a path in an image is absolute") };
        if relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("{path}: a path in an image has no empty part, . or ..");
        }
        for (end, _) in relative.match_indices('/') {
            let above = &relative[..end];
            match self.0.get(above) {
                None => drop(self.0.insert(above.to_string(), Node::Directory(0o755))),
                Some(Node::Directory(_)) => {}
                Some(_) => bail!("{path}: /{above} is no directory"),
            }
        }
        match (self.0.get(relative), &node) {
            (Some(Node::Directory(_)), Node::Directory(_)) | (None, _) => {}
            (Some(_), _) => bail!("{path}: stands there already"),
        }
        self.0.insert(relative.to_string(), node);
        Ok(())
    }

    /// Every node, parents before their children.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_appear_and_bad_paths_do_not() {
        let mut tree = Tree::default();
        tree.add("/a/b/c", Node::File(0o644, vec![])).unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path.to_string()).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
        for bad in ["a", "/", "/a/../b", "/a//b", "/a/b/c", "/a/b/c/d"] {
            assert!(tree.add(bad, Node::Symlink("x".into())).is_err(), "{bad}");
        }
    }
}
