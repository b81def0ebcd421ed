//! `registries.conf`, second version (containers-registries.conf(5)): which hosts serve an image.
//!
//! A rule is about the names that begin with its prefix, and a prefix ends where a part of a name ends. It is never
//! looked for inside a name: a rule for one host must not touch another. What can't be understood is refused, for a rule
//! that is passed over may be the one that blocks.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::MAX_FILE;
use super::name::{self, Name};
use crate::error::{Error, Kind, Result, quoted};
use crate::reference::DEFAULT_REGISTRY;

/// The rules of a `registries.conf`. Without one there are none.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    rules: Vec<Rule>,
    /// Hosts that short names are looked for on.
    search: Vec<String>,
    aliases: BTreeMap<String, Name>,
}

/// Where an image may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The image's name there, without a scheme: `host/path:tag`, or `host/path@digest`.
    pub reference: String,
    /// The host may speak TLS that nobody vouches for, or none.
    pub insecure: bool,
    /// It is a mirror: a miss means nothing.
    pub is_mirror: bool,
}

#[derive(Debug, Clone)]
struct Rule {
    prefix: Prefix,
    /// What takes the prefix's place; nothing does if there is none.
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone)]
struct Mirror {
    location: String,
    insecure: bool,
    serves: Serves,
}

/// Which names begin with it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Prefix {
    /// It is a host whose subdomains are meant.
    wildcard: bool,
    text: String,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    #[serde(default)]
    unqualified_search_registries: Vec<String>,
    #[serde(default)]
    registry: Vec<Table>,
    #[serde(default, rename = "short-name-mode")]
    _short_name_mode: Option<ShortNameMode>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    #[serde(default)]
    credential_helpers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Table {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct MirrorTable {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Serves>,
}

/// Which names a mirror is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Serves {
    All,
    DigestOnly,
    TagOnly,
}

/// Known, and without effect: all of them are about asking the user, and nobody is there to be asked.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ShortNameMode {
    Enforcing,
    Permissive,
    Disabled,
}

fn bad(reason: impl std::fmt::Display) -> Error {
    Error::new(Kind::BadRequest, format!("registries.conf: {reason}"))
}

impl Registries {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Result<Registries> {
        if text.len() > MAX_FILE {
            return Err(bad(format!("it has more than {MAX_FILE} bytes")));
        }
        let file: File = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
            bad(format!("line {line}: {}", error.message().lines().collect::<Vec<_>>().join("; ")))
        })?;
        if let Some(helper) = file.credential_helpers.first() {
            return Err(bad(format!(
                "credential-helpers: {} can't be run here, credentials are in auth.json",
                quoted(helper)
            )));
        }
        let rules = rules(file.registry)?;
        let host =
            |text: &String| name::host(text).map_err(|error| bad(error.context("unqualified-search-registries")));
        let search = file.unqualified_search_registries.iter().map(host).collect::<Result<_>>()?;
        let aliases = file.aliases.iter().filter(|(_, name)| !name.is_empty()); // an empty one takes an alias back
        let aliases = aliases.map(|(short, name)| alias(short, name)).collect::<Result<_>>()?;
        Ok(Registries { rules, search, aliases })
    }

    /// Where to ask for an image, in order: the mirrors, then the place itself.
    pub fn endpoints(&self, reference: &str) -> Result<Vec<Endpoint>> {
        let name = self.named(reference)?;
        let Some((rule, rest)) = self.rule(&name) else {
            return Ok(vec![Endpoint { reference: name.to_string(), insecure: false, is_mirror: false }]);
        };
        if rule.blocked {
            return Err(bad(format!("{name} is blocked by the rule for {:?}", rule.prefix.written())));
        }
        let pinned = name.digest.is_some();
        let mirrors = rule.mirrors.iter().filter(|mirror| mirror.serves.takes(pinned));
        let mut endpoints: Vec<Endpoint> = mirrors
            .map(|mirror| rule.endpoint(Some(&mirror.location), &rest, &name, mirror.insecure, true))
            .collect::<Result<_>>()?;
        endpoints.push(rule.endpoint(rule.location.as_ref(), &rest, &name, rule.insecure, false)?);
        Ok(endpoints)
    }

    /// The whole of a short name. A name that has a host is never looked for elsewhere.
    fn full(&self, name: Name) -> Result<Name> {
        if name.host.is_some() {
            return Ok(name);
        }
        if let Some(alias) = self.aliases.get(&name.path) {
            return Ok(Name { tag: name.tag, digest: name.digest, ..alias.clone() });
        }
        match self.search.as_slice() {
            [] => Ok(name.on(DEFAULT_REGISTRY)),
            [host] => Ok(name.on(host)),
            // Whoever has the name on the first of them would be asked for the image of the second.
            _ => Err(bad(format!("{name} could be on any of {}: give its full name", self.search.join(", ")))),
        }
    }

    /// The full name that `reference` stands for here: what is fetched, and what a policy is to judge.
    ///
    /// # Errors
    /// No image's name, or one that could be on any of several hosts.
    pub fn resolve(&self, reference: &str) -> Result<String> {
        Ok(self.named(reference)?.to_string())
    }

    fn named(&self, reference: &str) -> Result<Name> {
        Ok(self.full(Name::parse(reference)?)?.versioned())
    }

    /// The rule with the longest prefix, and what follows that prefix.
    fn rule(&self, name: &Name) -> Option<(&Rule, String)> {
        let forms = name.forms();
        let matches = self.rules.iter().flat_map(|rule| forms.iter().map(move |form| (rule, form)));
        matches
            .filter_map(|(rule, form)| Some((rule, rule.prefix.rest(form, rule.blocked)?.to_string())))
            .max_by_key(|(rule, _)| rule.prefix.rank())
    }
}

fn rules(tables: Vec<Table>) -> Result<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::with_capacity(tables.len());
    for table in tables {
        let rule = Rule::new(table)?;
        if rules.iter().any(|other| other.prefix == rule.prefix) {
            return Err(bad(format!("there are two rules for {:?}", rule.prefix.written())));
        }
        rules.push(rule);
    }
    Ok(rules)
}

fn alias(short: &str, full: &str) -> Result<(String, Name)> {
    let context = |error: Error| bad(error.context(format!("alias {}", quoted(short))));
    let (from, to) = (Name::parse(short).map_err(context)?, Name::parse(full).map_err(context)?);
    let plain = |name: &Name| name.tag.is_none() && name.digest.is_none();
    if from.host.is_some() || to.host.is_none() || !plain(&from) || !plain(&to) {
        return Err(context(Error::new(
            Kind::BadRequest,
            "it must lead from a short name to a full one, without tags",
        )));
    }
    Ok((from.path, to))
}

impl Rule {
    fn new(table: Table) -> Result<Rule> {
        let Some(written) = table.prefix.as_ref().or(table.location.as_ref()) else {
            return Err(bad("a [[registry]] has neither prefix nor location"));
        };
        let context = |error: Error| bad(error.context(format!("[[registry]] {}", quoted(written))));
        let prefix = Prefix::parse(written).map_err(context)?;
        let location = match &table.location {
            Some(location) => Some(name::place(location).map_err(context)?),
            None => None,
        };
        let by_digest = table.mirror_by_digest_only;
        let mirror = |mirror: &MirrorTable| {
            let serves = match (mirror.pull_from_mirror, by_digest) {
                (Some(_), true) => {
                    let reason = "pull-from-mirror and mirror-by-digest-only exclude each other";
                    return Err(Error::new(Kind::BadRequest, reason));
                }
                (None, true) => Serves::DigestOnly,
                (serves, false) => serves.unwrap_or(Serves::All),
            };
            Ok(Mirror { location: name::place(&mirror.location)?, insecure: mirror.insecure, serves })
        };
        let mirrors = table.mirror.iter().map(mirror).collect::<Result<_>>().map_err(context)?;
        Ok(Rule { prefix, location, insecure: table.insecure, blocked: table.blocked, mirrors })
    }

    /// The image's name at `location`. What is pinned stays pinned.
    fn endpoint(
        &self,
        location: Option<&String>,
        rest: &str,
        name: &Name,
        insecure: bool,
        is_mirror: bool,
    ) -> Result<Endpoint> {
        let written = location.map_or_else(|| name.to_string(), |location| format!("{location}{rest}"));
        let there = Name::parse(&written).map_err(|error| bad(error.context(self.prefix.written())))?;
        if there.host.is_none() || there.digest != name.digest || there.digest.is_none() && there.tag.is_none() {
            let prefix = self.prefix.written();
            return Err(bad(format!("the rule for {prefix:?} makes {written:?} of {name}, which is another image")));
        }
        Ok(Endpoint { reference: there.to_string(), insecure, is_mirror })
    }
}

impl Prefix {
    fn parse(written: &str) -> Result<Prefix> {
        match written.strip_prefix("*.") {
            Some(host) => Ok(Prefix { wildcard: true, text: name::host(host)? }),
            None => Ok(Prefix { wildcard: false, text: name::place(written)? }),
        }
    }

    fn written(&self) -> String {
        format!("{}{}", if self.wildcard { "*." } else { "" }, self.text)
    }

    /// The longer, the more exactly it is meant; a host itself goes before its domain.
    fn rank(&self) -> (usize, bool) {
        (self.written().len(), !self.wildcard)
    }

    /// What follows the prefix, if `name` begins with it. A host without a port is that host at its own port, but
    /// `any_port` takes it as the whole machine.
    fn rest<'a>(&self, name: &'a str, any_port: bool) -> Option<&'a str> {
        let begin = if self.wildcard { self.below(name)? } else { name };
        let rest = begin.strip_prefix(self.text.as_str())?;
        let tag = self.text.contains('/') || any_port;
        let ends = rest.is_empty() || rest.starts_with(['/', '@']) || tag && rest.starts_with(':');
        ends.then_some(rest)
    }

    /// `name` from where the domain begins in its host.
    fn below<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (host, _) = name.split_once('/')?;
        let (host, _) = if name::split_port(&self.text).1.is_some() { (host, None) } else { name::split_port(host) };
        let above = host.strip_suffix(self.text.as_str())?;
        (above.len() > 1 && above.ends_with('.')).then(|| name.strip_prefix(above)).flatten()
    }
}

impl Serves {
    fn takes(self, pinned: bool) -> bool {
        match self {
            Serves::All => true,
            Serves::DigestOnly => pinned,
            Serves::TagOnly => !pinned,
        }
    }
}

#[cfg(test)]
mod tests;
