//! The command line of the server: its own options, then the method's name and what the client appends, which is skopeo's.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// How long a registry may say nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// What the server is told at its start.
#[derive(Debug)]
pub(super) struct Options {
    /// How long a registry may say nothing.
    pub(super) silence: Duration,
    /// Who asks, in the form of containers-auth.json(5).
    pub(super) auth_file: Option<PathBuf>,
    /// A directory with `*.crt`, and `*.cert` with `*.key` for the client (containers-certs.d(5)).
    pub(super) certificates: Option<PathBuf>,
    /// Registries' other places, in the form of containers-registries.conf(5).
    pub(super) registries: Option<PathBuf>,
    /// Take any certificate, or none.
    pub(super) insecure: bool,
}

impl Options {
    pub(super) fn parse(args: impl Iterator<Item = String>) -> Result<Options> {
        let mut options =
            Options { silence: SILENCE, auth_file: None, certificates: None, registries: None, insecure: false };
        let mut args = args;
        while let Some(arg) = args.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (arg.as_str(), None),
            };
            let mut value = || {
                let value = inline.clone().or_else(|| args.next());
                value.ok_or_else(|| Error::new(Kind::BadRequest, format!("{name} needs a value")))
            };
            match name {
                "experimental-image-proxy" | "--no-creds" | "--insecure-policy" | "--debug" => {}
                "--silence" => options.silence = seconds(&value()?)?,
                "--authfile" => options.auth_file = Some(value()?.into()),
                "--cert-dir" => options.certificates = Some(value()?.into()),
                "--registries-conf" => options.registries = Some(value()?.into()),
                "--tls-verify" => options.insecure = inline.as_deref() == Some("false"),
                "--user-agent-prefix" => drop(value()?),
                _ => return Err(Error::new(Kind::BadRequest, format!("the option {name:.40} is unknown"))),
            }
        }
        Ok(options)
    }
}

fn seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse().ok().filter(|seconds| (1..=3600).contains(seconds)).map(Duration::from_secs);
    seconds.ok_or_else(|| Error::new(Kind::BadRequest, format!("{text:.40?} is no number of seconds from 1 to 3600")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options> {
        Options::parse(text.split_whitespace().map(String::from))
    }

    #[test]
    fn what_the_client_appends_is_understood() {
        let options = parse(
            "--silence 4 experimental-image-proxy --authfile /a --cert-dir /c --tls-verify=false --insecure-policy",
        );
        let options = options.unwrap();
        assert_eq!((options.silence.as_secs(), options.insecure), (4, true));
        assert_eq!(options.auth_file.unwrap(), PathBuf::from("/a"));
        assert!(!parse("experimental-image-proxy --no-creds").unwrap().insecure);
        for bad in ["--silence 0", "--authfile", "--policy x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
