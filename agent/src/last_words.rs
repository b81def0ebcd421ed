//! What the agent says last: why it failed, where it panicked, which signal has ended it.
//!
//! It stands in a file that outlives the agent. In a guest of ours that is one in memory, which process 1 reads before it powers off. Under
//! another init it is a file below /run, which the next agent finds: an agent that ends in order leaves none. Nothing that a request holds
//! is in it, so of a panic it has the place, and its message only where that is a part of the program.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, MemfdFlags, OFlags, fcntl_getfl, fcntl_lock, fcntl_setfl, memfd_create};

/// Where the next agent looks.
pub const FILE: &str = "/run/nacre/last-words";

/// The most that is kept.
const MAX: u64 = 4096;

/// The longest line: what the kernel's log takes at once, less what stands before it there.
const MAX_LINE: usize = 900;

static RECORD: OnceLock<Record> = OnceLock::new();

#[derive(Debug)]
struct Record {
    file: File,
    /// None if it is in memory.
    path: Option<PathBuf>,
}

/// What the agent before this one has left.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Left {
    /// How many agents have ended out of order before this one.
    pub restarts: u32,
    /// What the last of them said; nothing if it had no time to.
    pub words: String,
}

/// A file in memory, for two processes.
pub fn in_memory() -> io::Result<File> {
    Ok(memfd_create("last-words", MemfdFlags::CLOEXEC)?.into())
}

/// Everything that was said in `file`, which may be anything.
pub fn read(file: &File) -> io::Result<String> {
    let mut text = vec![0; MAX as usize];
    let length = file.read_at(&mut text, 0)?;
    text.truncate(length);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Have this process's last words go to `file`.
pub fn keep(file: File) -> io::Result<()> {
    keep_at(file, None)
}

/// Have them go to the file `path`, and take what the last agent has left there. Another agent that runs and has the file keeps it, which is an error.
pub fn inherit(path: &Path) -> io::Result<Left> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)?;
    // The lock is this process's alone: none that it starts keeps it.
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let left = left_in(&read(&file)?);
    file.set_len(0)?;
    file.write_all(format!("{}\n", left.restarts).as_bytes())?;
    keep_at(file, Some(path.into()))?;
    Ok(left)
}

/// The first line is how many agents had ended before the one that wrote the others.
fn left_in(text: &str) -> Left {
    let Some((restarts, words)) = text.split_once('\n') else { return Left::default() };
    Left { restarts: restarts.parse::<u32>().unwrap_or(0).saturating_add(1), words: words.trim_end().into() }
}

fn keep_at(file: File, path: Option<PathBuf>) -> io::Result<()> {
    fcntl_setfl(&file, fcntl_getfl(&file)? | OFlags::APPEND)?;
    let copy = file.try_clone()?;
    if RECORD.set(Record { file, path }).is_ok() {
        std::panic::set_hook(Box::new(panicked));
    }
    nacre_sys::crash::name_fatal_signals(copy.into())
}

/// Say `words`, on one line.
pub fn say(words: &str) {
    let Some(Record { file, .. }) = RECORD.get() else { return };
    if file.metadata().is_ok_and(|file| file.len() + MAX_LINE as u64 + 1 < MAX) {
        // Nobody is left to hear that it failed.
        let _ = (&*file).write_all(format!("{}\n", one_line(words)).as_bytes());
    }
}

/// This agent ends in order.
pub fn end_in_order() {
    if let Some(Record { path: Some(path), .. }) = RECORD.get() {
        let _ = fs::remove_file(path); // somebody else has
    }
}

fn one_line(words: &str) -> String {
    let mut line = words.replace(char::is_control, " ");
    line.truncate(line.floor_char_boundary(MAX_LINE));
    line
}

fn panicked(info: &PanicHookInfo<'_>) {
    // A message with arguments may have parts of a request in it.
    let message = info.payload().downcast_ref::<&str>().unwrap_or(&"its message may hold what is secret");
    let place = info.location().map_or_else(|| "an unknown place".into(), ToString::to_string);
    let words = format!("panicked at {place}: {message}");
    say(&words);
    tracing::error!("{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_counted_and_may_be_anything() {
        let left = |restarts, words: &str| Left { restarts, words: words.into() };
        assert_eq!(left_in(""), Left::default());
        assert_eq!(left_in("0\n"), left(1, ""));
        assert_eq!(left_in("4\nended by SIGSEGV\n"), left(5, "ended by SIGSEGV"));
        assert_eq!(left_in("\u{fffd}\n\nx\n"), left(1, "\nx"));
        assert_eq!(left_in("4294967295\n").restarts, u32::MAX);
    }

    #[test]
    fn a_line_is_one_line_that_the_kernels_log_takes() {
        assert_eq!(one_line("a\nb\tc"), "a b c");
        assert_eq!(one_line(&"ä".repeat(1000)).len(), MAX_LINE);
    }

    /// Runs in a process of its own: what it does ends it, or changes the whole process.
    #[test]
    #[ignore = "is started by the test below"]
    fn child() {
        let how = std::env::var("HOW").unwrap();
        let file = File::from(rustix::io::dup(rustix::stdio::stdin()).unwrap());
        keep(file).unwrap();
        match how.as_str() {
            "literal" => panic!("a word of the program's"),
            "secret" => panic!("{}", std::env::var("HOW").unwrap()),
            "overflow" => println!("{}", endless(1)),
            "abort" => std::process::abort(),
            _ => (0..1000).for_each(|_| say(&"x".repeat(2000))),
        }
    }

    #[expect(unconditional_recursion, reason = "that is the point")]
    fn endless(n: u64) -> u64 {
        std::hint::black_box(endless(std::hint::black_box(n + 1)) + n)
    }

    #[test]
    fn each_end_is_told_and_no_secret() {
        for (how, words) in [
            ("literal", "last_words.rs"),
            ("literal", ": a word of the program's\n"),
            ("secret", ": its message may hold what is secret\n"),
            ("abort", "ended by SIGABRT\n"),
            ("overflow", "ended by SIGSEGV\nended by SIGABRT\n"),
            ("much", "xxx\n"),
        ] {
            let file = in_memory().unwrap();
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            command.args(["--ignored", "--exact", "last_words::tests::child"]).env("HOW", how);
            command.stdin(file.try_clone().unwrap()).output().unwrap();
            let said = read(&file).unwrap();
            assert!(said.contains(words) && said.len() as u64 <= MAX, "{how}: {said}");
        }
    }
}
