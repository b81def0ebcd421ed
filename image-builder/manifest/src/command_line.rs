//! The kernel's command line.

use std::error::Error;
use std::fmt;

use crate::{Root, Verity};

/// The host's port that the guest calls when it is ready.
pub const READY_PORT: u32 = 1030;

/// The bytes that a kernel for x86 takes, less the one that ends them: `COMMAND_LINE_SIZE`.
const MAX_BYTES: usize = 2047;

/// The unit of the device mapper's tables.
const SECTORS_PER_BLOCK: u64 = 8;

/// The machine that the kernel boots on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Machine {
    /// One without PCI.
    #[default]
    Microvm,
    /// A whole PC.
    Pc,
}

/// What makes a command line, in the order in which it is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct CommandLine<'a> {
    /// The machine.
    pub machine: Machine,
    /// The image's own words.
    pub parameters: &'a [String],
    /// The root, if it is on a disk.
    pub root: Option<&'a Root>,
    /// What the host has to add for this one VM: nobody can have foreseen it, so no image's manifest has it.
    pub more: &'a [String],
}

/// A command line that no kernel would read as it was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unusable {
    /// It would be cut to two words or more, or be none.
    Word(String),
    /// The kernel would cut it off.
    TooLong(usize),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unusable::Word(word) => write!(f, "{word:?} is no single word of a kernel's command line"),
            Unusable::TooLong(bytes) => {
                write!(f, "the kernel's command line has {bytes} bytes, of {MAX_BYTES} at most")
            }
        }
    }
}

impl Error for Unusable {}

/// Renders it. The image has the say on the console: an image that names one gets no other.
///
/// # Errors
/// Words that the kernel would read as others, or too many.
pub fn command_line(line: &CommandLine<'_>) -> Result<String, Unusable> {
    let mut words: Vec<String> = ["quiet", "panic=-1", "reboot=t"].map(String::from).to_vec();
    if !line.parameters.iter().any(|word| word.starts_with("console=")) {
        words.insert(0, "console=ttyS0".into());
    }
    if line.machine == Machine::Microvm {
        words.push("pci=off".into());
    }
    words.push(format!("nacre.ready_port={READY_PORT}"));
    words.extend_from_slice(line.parameters);
    words.extend(line.root.into_iter().flat_map(of_root));
    words.extend_from_slice(line.more);
    if let Some(word) = words.iter().find(|word| !is_one_word(word)) {
        return Err(Unusable::Word(word.clone()));
    }
    let text = words.join(" ");
    if text.len() > MAX_BYTES { Err(Unusable::TooLong(text.len())) } else { Ok(text) }
}

/// White space may stand between quotes alone; the agent and the kernel cut words alike.
fn is_one_word(word: &str) -> bool {
    let mut quoted = false;
    let whole = word.bytes().all(|byte| {
        quoted ^= byte == b'"';
        byte.is_ascii_graphic() || byte == b' ' && quoted
    });
    whole && !quoted && !word.is_empty()
}

/// The kernel makes the device itself before it mounts the root, so nothing runs that is not in the image. A root that was changed ends
/// the guest: whatever was read of it by then, nothing that follows from half a root gets to run.
fn of_root(root: &Root) -> [String; 4] {
    let Verity { data_blocks, hash_start, root_hash, salt } = &root.verity;
    let (data, hash) = (&root.data_partition, &root.hash_partition);
    let sectors = data_blocks.saturating_mul(SECTORS_PER_BLOCK);
    [
        format!(
            "dm-mod.create=\"root,,0,ro,0 {sectors} verity 1 PARTUUID={data} PARTUUID={hash} 4096 4096 {data_blocks} {hash_start} sha256 \
             {root_hash} {salt} 1 panic_on_corruption\""
        ),
        "root=/dev/dm-0".into(),
        format!("rootfstype={}", root.filesystem),
        "init=/init".into(),
    ]
}

/// The word by which the agent knows what the extension `name` must hold.
pub fn of_extension(name: &str, verity: &Verity) -> String {
    let Verity { data_blocks, root_hash, salt, .. } = verity;
    format!(
        "kata.extension.{name}.verity_params=root_hash={root_hash},salt={salt},data_blocks={data_blocks},data_block_size=4096,\
         hash_block_size=4096"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> Root {
        Root {
            filesystem: "erofs".into(),
            verity: Verity { data_blocks: 300, hash_start: 1, root_hash: "ab".repeat(32), salt: "cd".repeat(32) },
            data_partition: "d".into(),
            hash_partition: "h".into(),
        }
    }

    /// It is measured: another byte is another guest.
    #[test]
    fn a_line_is_these_bytes() {
        let (own, more) = (["agent.log=debug".to_string()], ["no_timer_check".to_string()]);
        let line = CommandLine { parameters: &own, more: &more, ..CommandLine::default() };
        let base = "quiet panic=-1 reboot=t pci=off nacre.ready_port=1030";
        assert_eq!(command_line(&line).unwrap(), format!("console=ttyS0 {base} agent.log=debug no_timer_check"));
        let own = ["console=hvc0".to_string()];
        let root = root();
        let line = CommandLine { machine: Machine::Pc, parameters: &own, root: Some(&root), more: &[] };
        let (hash, salt) = (&root.verity.root_hash, &root.verity.salt);
        let expected = format!(
            "quiet panic=-1 reboot=t nacre.ready_port=1030 console=hvc0 dm-mod.create=\"root,,0,ro,0 2400 verity 1 PARTUUID=d PARTUUID=h \
             4096 4096 300 1 sha256 {hash} {salt} 1 panic_on_corruption\" root=/dev/dm-0 rootfstype=erofs init=/init"
        );
        assert_eq!(command_line(&line).unwrap(), expected);
    }

    #[test]
    fn no_word_becomes_two_and_none_is_lost() {
        let with = |word: &str| command_line(&CommandLine { more: &[word.into()], ..CommandLine::default() });
        assert!(with("a=\"b c\"").is_ok());
        for bad in ["", "a b", "a\tb", "a\nb", "a=\"b", "a\0", "\u{e4}"] {
            assert_eq!(with(bad), Err(Unusable::Word(bad.into())));
        }
        assert!(matches!(with(&"a".repeat(2048)), Err(Unusable::TooLong(_))));
    }
}
