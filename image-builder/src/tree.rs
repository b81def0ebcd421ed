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
pub struct Tree(BTreeMap<String, Owned>);

/// A node, and who has put it there: nobody, for directories that appeared above others.
#[derive(Debug, Clone)]
struct Owned {
    node: Node,
    by: String,
}

impl Tree {
    /// Adds a node; directories above it appear with mode 0755.
    ///
    /// # Errors
    /// As [`Tree::add_from`].
    pub fn add(&mut self, path: &str, node: Node) -> Result<()> {
        self.add_from("", path, node)
    }

    /// Adds a node that `by` asks for. Errors say so, and who was there before.
    ///
    /// # Errors
    /// A path that is not absolute, holds `.` or `..`, is taken, or leads through what is no directory.
    pub fn add_from(&mut self, by: &str, path: &str, node: Node) -> Result<()> {
        let here = if by.is_empty() { path.to_string() } else { format!("{by}: {path}") };
        let Some(relative) = path.strip_prefix('/') else { bail!("{here}: a path in an image is absolute") };
        if relative.contains('\0') || relative.split('/').any(|part| matches!(part, "" | "." | "..")) {
            bail!("{here}: a path in an image has no empty part, . or ..");
        }
        for (end, _) in relative.match_indices('/') {
            let above = &relative[..end];
            match self.0.get(above) {
                None => {
                    self.0.insert(above.to_string(), Owned { node: Node::Directory(0o755), by: String::new() });
                }
                Some(Owned { node: Node::Directory(_), .. }) => {}
                Some(other) => bail!("{here}: /{above} is no directory{}", other.said()),
            }
        }
        match (self.0.get(relative), &node) {
            (None, _) => {}
            // Whoever says a directory's mode has the last word, unless somebody else has said another.
            (Some(Owned { node: Node::Directory(old), by }), Node::Directory(new)) if by.is_empty() || old == new => {}
            (Some(other), _) => bail!("{here}: stands there already{}", other.said()),
        }
        self.0.insert(relative.to_string(), Owned { node, by: by.to_string() });
        Ok(())
    }

    /// Whether something stands at the absolute `path`.
    pub fn contains(&self, path: &str) -> bool {
        path.strip_prefix('/').is_some_and(|path| self.0.contains_key(path))
    }

    /// Every node, parents before their children.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, owned)| (path.as_str(), &owned.node))
    }
}

impl Owned {
    /// Who is to be blamed.
    fn said(&self) -> String {
        if self.by.is_empty() { String::new() } else { format!(" ({})", self.by) }
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
    #[test]
    fn who_has_a_path_is_named_to_who_wants_it() {
        let mut tree = Tree::default();
        tree.add_from("one", "/a/b", Node::File(0o644, vec![])).unwrap();
        let mut error = |path: &str, node| tree.add_from("two", path, node).unwrap_err().to_string();
        assert_eq!(error("/a/b", Node::Symlink("x".into())), "two: /a/b: stands there already (one)");
        assert_eq!(error("/a/b/c", Node::Symlink("x".into())), "two: /a/b/c: /a/b is no directory (one)");
        tree.add_from("one", "/a", Node::Directory(0o700)).unwrap();
        tree.add_from("two", "/a", Node::Directory(0o700)).unwrap();
        assert!(tree.add_from("three", "/a", Node::Directory(0o755)).is_err());
        assert!(tree.contains("/a/b") && !tree.contains("a/b"));
    }
}
