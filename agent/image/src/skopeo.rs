//! skopeo in the place of our own server: this process confines itself and then becomes skopeo.
//!
//! The walls are those of our own server where another's program stands them. What skopeo is to read, and its user may not open, is open already.

use std::fs::File;
use std::os::fd::IntoRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::confine::Confinement;
use crate::error::{Error, Kind, Result};

/// Becomes skopeo. `args` are this role's own and those that the client appends, which are skopeo's.
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let error = match prepare(args) {
        Ok(mut skopeo) => Error::system("start skopeo", skopeo.exec()),
        Err(error) => error,
    };
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{error}\n").as_bytes()); // the client quotes it
    ExitCode::FAILURE
}

fn prepare(mut args: impl Iterator<Item = String>) -> Result<Command> {
    let (mut user, mut scratch) = (None, None);
    // This machine's own rules for registries are looked at no more than by our server.
    let mut registries = String::from("/dev/null");
    let mut skopeo = Command::new("skopeo");
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| wrong(&format!("{arg} needs a value")));
        match arg.as_str() {
            "--user" => user = Some(value()?.parse().map_err(|_| wrong("--user: it is no number"))?),
            "--scratch" => {
                let dir = PathBuf::from(value()?);
                skopeo.arg("--tmpdir").arg(&dir);
                scratch = Some(dir);
            }
            "--registries-conf" => registries = inherited(&value()?)?,
            "--authfile" => {
                let file = inherited(&value()?)?;
                skopeo.arg(arg).arg(file);
            }
            _ => drop(skopeo.arg(arg)),
        }
    }
    skopeo.arg("--registries-conf").arg(registries);
    Confinement::of_skopeo(user, scratch.as_deref())?.process()?;
    Ok(skopeo)
}

/// Opens a file and leaves it open; returns the path by which whoever this process becomes opens it again.
fn inherited(path: &str) -> Result<String> {
    let fail = |error| Error::system("open what skopeo is to read", error);
    let file = File::open(path).map_err(fail)?;
    fcntl_setfd(&file, FdFlags::empty()).map_err(|error| fail(error.into()))?;
    Ok(format!("/proc/self/fd/{}", file.into_raw_fd()))
}

fn wrong(message: &str) -> Error {
    Error::new(Kind::BadRequest, message)
}
