//! Exit codes, as container tools have them.

/// Nacre itself failed, and no program of the user's has run.
pub const NACRE: i32 = 125;
/// The program can't be executed.
pub const NOT_EXECUTABLE: i32 = 126;
/// The program does not exist.
pub const NOT_FOUND: i32 = 127;

/// A person asked to stop: 128 and the signal is the exit code.
#[derive(Debug, thiserror::Error)]
#[error("stopped by signal {0}")]
pub struct Stopped(pub i32);

/// The exit code that tells an error.
pub fn code(error: &anyhow::Error) -> i32 {
    if let Some(Stopped(signal)) = error.downcast_ref() {
        return 128 + signal;
    }
    let text = format!("{error:#}");
    match text.rsplit_once("run \"") {
        Some((_, rest)) if rest.contains("No such file or directory") => NOT_FOUND,
        Some((_, rest)) if rest.contains("Permission denied") => NOT_EXECUTABLE,
        _ => NACRE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_what_was_wrong() {
        let of = |text: &str| code(&anyhow::anyhow!("{text}"));
        assert_eq!(of("start x: run \"nope\": No such file or directory (os error 2)"), 127);
        assert_eq!(of("start x: run \"/etc\": Permission denied (os error 13)"), 126);
        assert_eq!(of("pull: Permission denied"), 125);
        assert_eq!(code(&Stopped(2).into()), 130);
    }
}
