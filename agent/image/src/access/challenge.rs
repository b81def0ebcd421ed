//! `WWW-Authenticate` (RFC 9110 §11.6.1): how a registry wants to be asked, and where its tokens are to be had.

use crate::error::{Error, Kind, Result};

use super::name;

/// Bounds on what a registry may send.
const MAX_TEXT: usize = 16 << 10;
const MAX_CHALLENGES: usize = 16;
const MAX_PARAMETERS: usize = 32;

/// What a URL may hold besides letters and digits (RFC 3986 §2), but for `#`: a fragment is not sent.
const URL: &[u8] = b"-._~:/?[]@!$&'()*+,;=%";

/// One way to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case: `basic`, `bearer`.
    pub scheme: String,
    /// Names in lower case, and values. A value without a name (`token68`) has an empty one.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter, which must not be there twice.
    fn one(&self, name: &str) -> Result<Option<&str>> {
        let mut values = self.parameters.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(bad(&format!("it has two parameters {name}"))),
            (value, None) => Ok(value),
        }
    }
}

fn bad(reason: &str) -> Error {
    Error::new(Kind::Unauthorized, format!("the registry's challenge makes no sense: {reason}"))
}

/// The challenges of all headers `WWW-Authenticate`, in order. Of a header that is malformed, what comes before the
/// fault.
pub fn parse(headers: &[&str]) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    for header in headers.iter().filter(|header| header.len() <= MAX_TEXT) {
        let mut rest = Cursor(header);
        while challenges.len() < MAX_CHALLENGES {
            let Some(challenge) = rest.challenge() else { break };
            challenges.push(challenge);
        }
    }
    challenges
}

/// Where to ask for a token that lets one pull from `repository` (`library/alpine`). Only `insecure` registries may
/// have it come unencrypted.
pub fn bearer_url(challenge: &Challenge, repository: &str, insecure: bool) -> Result<String> {
    if challenge.scheme != "bearer" {
        return Err(bad("it is for no token"));
    }
    let realm = challenge.one("realm")?.ok_or_else(|| bad("it names no realm"))?;
    let mut url = checked_url(realm, insecure)?;
    let scope = format!("repository:{repository}:pull");
    for (key, value) in [("service", challenge.one("service")?), ("scope", Some(scope.as_str()))] {
        let Some(value) = value else { continue };
        if !url.contains('?') {
            url.push('?');
        } else if !url.ends_with(['?', '&']) {
            url.push('&');
        }
        url.push_str(key);
        url.push('=');
        url.extend(value.bytes().map(encoded));
    }
    Ok(url)
}

/// A realm that is a plain address.
fn checked_url(realm: &str, insecure: bool) -> Result<String> {
    let (scheme, rest) = realm.split_once("://").ok_or_else(|| bad("its realm is no URL"))?;
    let scheme = scheme.to_ascii_lowercase();
    match scheme.as_str() {
        "https" => {}
        "http" if insecure => {}
        "http" => return Err(bad("it sends for a token over http, where anybody could read it")),
        _ => return Err(bad("its realm is no URL of the web")),
    }
    if !rest.bytes().all(|c| c.is_ascii_alphanumeric() || URL.contains(&c)) {
        return Err(bad("its realm is no URL"));
    }
    let (host, tail) = rest.split_at_checked(rest.find(['/', '?']).unwrap_or(rest.len())).unwrap_or_default();
    // No user either: whoever asks is not for the registry to say.
    name::host(host).map_err(|error| bad(&format!("its realm: {error}")))?;
    Ok(format!("{scheme}://{host}{tail}"))
}

/// A byte of a query's value (RFC 3986 §2.1).
fn encoded(byte: u8) -> String {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

/// What is still to be read of a header.
#[derive(Clone, Copy)]
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    /// Takes what fits; nothing if nothing does.
    fn take(&mut self, fits: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !fits(c)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at_checked(end).unwrap_or_default();
        self.0 = rest;
        taken
    }

    fn spaces(&mut self) -> bool {
        !self.take(|c| matches!(c, ' ' | '\t')).is_empty()
    }

    /// Commas between elements; there may be more than it takes.
    fn commas(&mut self) {
        self.take(|c| matches!(c, ' ' | '\t' | ','));
    }

    fn token(&mut self) -> Option<&'a str> {
        let token = self.take(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c));
        (!token.is_empty()).then_some(token)
    }

    fn character(&mut self, wanted: char) -> Option<()> {
        self.0 = self.0.strip_prefix(wanted)?;
        Some(())
    }

    fn at_end(self) -> bool {
        self.0.is_empty() || self.0.starts_with(',')
    }

    fn challenge(&mut self) -> Option<Challenge> {
        self.commas();
        let mut challenge = Challenge { scheme: self.token()?.to_ascii_lowercase(), parameters: Vec::new() };
        let apart = self.spaces();
        if self.at_end() {
            return Some(challenge);
        }
        if !apart {
            return None;
        }
        if let Some(value) = self.attempt(Cursor::token68) {
            challenge.parameters.push((String::new(), value));
            return Some(challenge);
        }
        while let Some(parameter) = self.attempt(Cursor::parameter) {
            if challenge.parameters.len() >= MAX_PARAMETERS {
                return None;
            }
            challenge.parameters.push(parameter);
            if !self.at_end() {
                return None;
            }
            self.commas();
        }
        (!challenge.parameters.is_empty()).then_some(challenge)
    }

    /// Reads something, or stays where it is.
    fn attempt<T>(&mut self, read: impl Fn(&mut Cursor<'a>) -> Option<T>) -> Option<T> {
        let mut ahead = *self;
        let found = read(&mut ahead)?;
        *self = ahead;
        Some(found)
    }

    /// Data without a name: `Negotiate YII=`.
    fn token68(&mut self) -> Option<String> {
        let data = self.take(|c| c.is_ascii_alphanumeric() || "-._~+/".contains(c));
        let padding = self.take(|c| c == '=');
        self.spaces();
        (!data.is_empty() && self.at_end()).then(|| format!("{data}{padding}"))
    }

    /// `name=value` or `name="value"`
    fn parameter(&mut self) -> Option<(String, String)> {
        let name = self.token()?.to_ascii_lowercase();
        self.spaces();
        self.character('=')?;
        self.spaces();
        let value = if self.0.starts_with('"') { self.quoted()? } else { self.token()?.to_string() };
        self.spaces();
        Some((name, value))
    }

    fn quoted(&mut self) -> Option<String> {
        self.character('"')?;
        let mut value = String::new();
        let mut characters = self.0.chars();
        loop {
            let character = match characters.next()? {
                '"' => break,
                '\\' => characters.next()?,
                other => other,
            };
            if character.is_control() && character != '\t' {
                return None;
            }
            value.push(character);
        }
        self.0 = characters.as_str();
        Some(value)
    }
}

#[cfg(test)]
mod tests;
