//! The files of all packages as one read-only tree, through which links lead as they would in the guest and never out of it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};

use super::deb::{Deb, Entry, MERGED};

/// The longest chain of symbolic links that is followed, as the kernel has it.
const MAX_LINKS: usize = 40;

/// Files of packages, by path.
#[derive(Debug, Default)]
pub struct Contents {
    packages: Vec<(String, Deb)>,
    /// Whose a path is.
    owners: BTreeMap<String, usize>,
}

impl Contents {
    /// Adds a package.
    ///
    /// # Errors
    /// A file that another package has, too.
    pub fn add(&mut self, name: &str, deb: Deb) -> Result<()> {
        let index = self.packages.len();
        for (path, entry) in &deb.entries {
            let Some(owner) = self.owners.get(path) else {
                self.owners.insert(path.clone(), index);
                continue;
            };
            let Some((other, theirs)) = self.packages.get(*owner) else { continue };
            let shared = matches!((theirs.entries.get(path), entry), (Some(Entry::Directory(_)), Entry::Directory(_)));
            ensure!(shared, "/{path} is in the packages {other} and {name}");
        }
        self.packages.push((name.to_string(), deb));
        Ok(())
    }

    /// Every path, without its leading slash, and what stands there, parents before their children.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.owners.iter().filter_map(|(path, owner)| {
            let (_, deb) = self.packages.get(*owner)?;
            Some((path.as_str(), deb.entries.get(path)?))
        })
    }

    /// The permission bits and the bytes of the file at `path`, wherever links lead.
    ///
    /// # Errors
    /// What is no file, or not there.
    pub fn file(&self, path: &str) -> Result<(u32, &[u8])> {
        let real = self.resolve(path)?;
        match self.at(&real) {
            Some((deb, Entry::File(mode, range))) => Ok((*mode, deb.bytes(range))),
            _ => bail!("/{real} is no file"),
        }
    }

    /// What the package `name` alone says of `path`: the same, if the path is that package's.
    ///
    /// # Errors
    /// As [`Contents::file`]; a file of another package.
    pub fn file_of(&self, name: &str, path: &str) -> Result<(u32, &[u8])> {
        let real = self.resolve(path)?;
        let owner = self.owners.get(&real).and_then(|owner| self.packages.get(*owner));
        let is_theirs = owner.is_some_and(|(owner, _)| owner == name);
        ensure!(is_theirs, "{path} is not in {name}");
        self.file(path)
    }

    fn at(&self, path: &str) -> Option<(&Deb, &Entry)> {
        let (_, deb) = self.packages.get(*self.owners.get(path)?)?;
        Some((deb, deb.entries.get(path)?))
    }

    /// The path that `path` is in the end.
    fn resolve(&self, path: &str) -> Result<String> {
        let mut todo: Vec<&str> = path.split('/').rev().collect();
        let mut at: Vec<&str> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                top if at.is_empty() && MERGED.contains(&top) => at.extend(["usr", top]),
                _ => at.push(part),
            }
            let here = at.join("/");
            match self.at(&here) {
                None => bail!("/{here} is missing"),
                Some((_, Entry::Symlink(target))) => {
                    links += 1;
                    ensure!(links <= MAX_LINKS, "{path}: too many symbolic links");
                    at.pop();
                    if target.starts_with('/') {
                        at.clear();
                    }
                    todo.extend(target.split('/').rev());
                }
                Some(_) => {}
            }
        }
        Ok(at.join("/"))
    }

    /// The files below `directory` whose names end in `suffix`, in the order of their names.
    ///
    /// # Errors
    /// A directory that holds none, or is not there.
    pub fn below(&self, directory: &str, suffix: &str) -> Result<Vec<&[u8]>> {
        let prefix = format!("{}/", self.resolve(directory)?);
        let files: Vec<_> = self
            .owners
            .range(prefix.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&prefix))
            .filter(|path| path.ends_with(suffix))
            .filter_map(|path| self.at(path))
            .filter_map(|(deb, entry)| if let Entry::File(_, range) = entry { Some(deb.bytes(range)) } else { None })
            .collect();
        files.first().with_context(|| format!("{directory} holds no *{suffix}"))?;
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::super::deb::made::deb;
    use super::*;

    fn contents(packages: &[(&str, &[&str])]) -> Result<Contents> {
        let mut contents = Contents::default();
        for (name, entries) in packages {
            contents.add(name, Deb::read(&deb(entries))?)?;
        }
        Ok(contents)
    }

    #[test]
    fn a_link_in_a_package_leads_nowhere_outside() {
        let links = [
            "usr/",
            "usr/lib/",
            "usr/lib/real",
            "usr/lib/relative -> real",
            "usr/lib/absolute -> /usr/lib/real",
            "usr/lib/merged -> /lib/real",
            "usr/lib/deep -> ../../../../../../usr/lib/real",
            "usr/lib/outside -> /etc/passwd",
            "usr/lib/loop -> loop",
        ];
        let contents = contents(&[("a", &links)]).unwrap();
        for good in ["real", "relative", "absolute", "merged", "deep"] {
            assert_eq!(contents.file(&format!("/usr/lib/{good}")).unwrap().1, b"usr/lib/real", "{good}");
            assert!(contents.file(&format!("/lib/{good}")).is_ok(), "{good}");
        }
        for bad in ["outside", "loop", "missing", ""] {
            assert!(contents.file(&format!("/usr/lib/{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_has_one_package() {
        let error = contents(&[("a", &["usr/", "usr/x"]), ("b", &["usr/", "usr/x"])]).unwrap_err();
        assert_eq!(error.to_string(), "/usr/x is in the packages a and b");
        let both = contents(&[("a", &["usr/", "usr/x.crt"]), ("b", &["usr/", "usr/y.crt"])]).unwrap();
        assert_eq!(both.file_of("b", "/usr/y.crt").unwrap().1, b"usr/y.crt");
        assert_eq!(both.file_of("a", "/usr/y.crt").unwrap_err().to_string(), "/usr/y.crt is not in a");
        assert_eq!(both.below("/usr", ".crt").unwrap(), [b"usr/x.crt", b"usr/y.crt"]);
        assert!(both.below("/usr", ".pem").is_err());
    }
}
