//! The command line by which containerd and CRI-O call a shim (containerd, "Runtime v2"): flags as Go's package `flag` has them.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// The longest value that is taken.
const MAX_VALUE: usize = 4096;

/// The longest name of a container or a namespace: what containerd allows.
const MAX_NAME: usize = 76;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Serve the pod: no action was named.
    #[default]
    Serve,
    /// Say where the pod is served, and have somebody serve it.
    Start,
    /// Remove what a pod has left.
    Delete,
    /// Say the version.
    Version,
    /// Say what this shim can do.
    Info,
}

/// The command line.
#[derive(Debug, Clone, Default)]
pub struct Args {
    /// What is to be done.
    pub action: Action,
    /// containerd's namespace.
    pub namespace: String,
    /// The container.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The container's bundle, where it is not the working directory.
    pub bundle: Option<PathBuf>,
    /// Where sockets are made [/run/containerd/s].
    pub socket_dir: Option<PathBuf>,
    /// Whether the log says more.
    pub debug: bool,
}

impl Args {
    /// Reads the arguments behind the program's name.
    ///
    /// # Errors
    /// A flag or an action that is not known, or a name that is none.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Args> {
        let mut args = Args::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let Ok(argument) = argument.into_string() else { bail!("an argument is not UTF-8") };
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                args.action = action(&argument)?;
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (flag, None),
            };
            if args.set_switch(name, value.as_deref()) {
                continue;
            }
            let value = match value {
                Some(value) => value,
                None => match arguments.next().map(OsString::into_string) {
                    Some(Ok(value)) => value,
                    _ => bail!("-{name}: it needs a value"),
                },
            };
            args.set(name, value)?;
        }
        args.check()?;
        Ok(args)
    }

    fn set_switch(&mut self, name: &str, value: Option<&str>) -> bool {
        let on = value != Some("false");
        match name {
            "debug" => self.debug = on,
            "v" => self.action = Action::Version,
            "info" => self.action = Action::Info,
            _ => return false,
        }
        true
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        if value.len() > MAX_VALUE {
            bail!("-{name}: its value is longer than {MAX_VALUE} bytes");
        }
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "address" => self.address = value,
            "bundle" => self.bundle = Some(value.into()),
            "socket-dir" => self.socket_dir = Some(value.into()),
            "publish-binary" => {} // events go over containerd's socket
            _ => bail!("-{name}: this shim has no such flag"),
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if matches!(self.action, Action::Version | Action::Info) {
            return Ok(());
        }
        for (flag, name) in [("-namespace", &self.namespace), ("-id", &self.id)] {
            if !is_name(name) {
                bail!("{flag}: {:?} is no name", name.chars().take(MAX_NAME).collect::<String>());
            }
        }
        Ok(())
    }
}

fn action(word: &str) -> Result<Action> {
    match word {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => bail!("{:?}: this shim starts and deletes", word.chars().take(MAX_NAME).collect::<String>()),
    }
}

/// Whether this is a name of containerd's: it becomes a directory's.
pub fn is_name(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=MAX_NAME).contains(&text.len())
        && text.chars().all(inner)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn containerd_is_understood() {
        let args =
            parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id abc -debug start");
        let args = args.unwrap();
        assert_eq!(
            (args.action, args.namespace.as_str(), args.id.as_str(), args.debug),
            (Action::Start, "k8s.io", "abc", true)
        );
        let args = parse("--namespace=default --id=a --bundle /b delete").unwrap();
        assert_eq!((args.action, args.bundle), (Action::Delete, Some("/b".into())));
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-namespace a -id b").unwrap().action, Action::Serve);
    }

    #[test]
    fn what_is_no_name_or_no_flag_is_refused() {
        for line in
            ["-namespace a -id ../b start", "-namespace a -id", "-id b start", "-namespace a -id b stop", "-x y start"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(!is_name(&"a".repeat(MAX_NAME + 1)) && !is_name(".a") && is_name("a.b_c-d"));
    }
}
