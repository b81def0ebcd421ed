//! The command line of the server: its own options, then the method's name and what the client appends, which is skopeo's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tls::Trust;
use crate::access::credentials::Credentials;
use crate::access::registries::Registries;
use crate::error::{Error, Kind, Result, quoted};
use crate::limited;

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// What the server is told at its start. All files are read then: afterwards it may have no right to.
#[derive(Debug)]
pub(super) struct Options {
    /// How long a registry may say nothing.
    pub(super) silence: Duration,
    /// Who asks (containers-auth.json(5)).
    pub(super) credentials: Credentials,
    /// Registries' other places (containers-registries.conf(5)).
    pub(super) registries: Registries,
    /// Whom to trust, and who we are.
    pub(super) trust: Trust,
    /// Take any certificate, or none.
    pub(super) insecure: bool,
    /// The user to be from now on.
    pub(super) user: Option<u32>,
}

impl Options {
    pub(super) fn parse(args: impl Iterator<Item = String>) -> Result<Options> {
        let (mut silence, mut insecure, mut user, mut certificates) = (SILENCE, false, None, None);
        let (mut credentials, mut registries) = (Credentials::default(), Registries::default());
        let mut args = args;
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (arg.as_str(), None),
            };
            let mut value = || {
                let value = inline.clone().or_else(|| args.next());
                value.ok_or_else(|| wrong(format!("{name} needs a value")))
            };
            match name {
                "experimental-image-proxy" | "--no-creds" | "--insecure-policy" | "--debug" => {}
                "--silence" => silence = seconds(&value()?)?,
                "--user" => user = Some(value()?.parse().map_err(|_| wrong("--user: it is no number".into()))?),
                "--authfile" => {
                    credentials = Credentials::parse(&limited::read(Path::new(&value()?), limited::MAX_TEXT)?)?
                }
                "--registries-conf" => registries = Registries::parse(&limited::read_text(Path::new(&value()?))?)?,
                "--cert-dir" => certificates = Some(PathBuf::from(value()?)),
                "--tls-verify" => insecure = inline.as_deref() == Some("false"),
                "--user-agent-prefix" => drop(value()?),
                _ => return Err(wrong(format!("the option {name:.40} is unknown"))),
            }
        }
        let trust = Trust::load(certificates.as_deref())?;
        Ok(Options { silence, credentials, registries, trust, insecure, user })
    }
}

fn wrong(message: String) -> Error {
    Error::new(Kind::BadRequest, message)
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds)).map(Duration::from_secs);
    seconds
        .ok_or_else(|| Error::new(Kind::BadRequest, format!("{} is no number of seconds from 1 to 3600", quoted(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(text.split_whitespace().map(String::from))
    }

    #[test]
    fn what_the_client_appends_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let auth = dir.path().join("auth.json");
        std::fs::write(&auth, "{}").unwrap();
        let (dir, auth) = (dir.path().display(), auth.display());
        let options = parse(&format!(
            "--silence 4 --user 65534 experimental-image-proxy --authfile {auth} --cert-dir {dir} --tls-verify=false --insecure-policy"
        ));
        let options = options.unwrap();
        assert_eq!((options.silence.as_secs(), options.insecure, options.user), (4, true, Some(65534)));
        assert!(!parse("experimental-image-proxy --no-creds").unwrap().insecure);
        for bad in ["--silence 0", "--authfile", "--policy x", "--user nobody", "--cert-dir /nonexistent/x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
