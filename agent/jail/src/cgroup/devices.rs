//! Which devices a container may open or make. On cgroup v1 the kernel keeps a list of what is allowed; on cgroup v2 it asks an eBPF program,
//! which is made here from the same rules.
//!
//! All is forbidden but the nodes that the specification has made, until its rules say otherwise, the last one that matches deciding; the default
//! devices are allowed in any case.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use nacre_sys::bpf::{self, Instruction};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{Cgroup, is_unified};
use crate::error::Error;

const MAKE: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;
const ALL: u8 = MAKE | READ | WRITE;

/// The kinds of devices (linux/bpf.h, `BPF_DEVCG_DEV_BLOCK` and `_CHAR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// A rule. What is `None` matches anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// null, zero, full, random, urandom, tty, console, ptmx, and the terminals of devpts.
const DEFAULTS: [(u32, Option<u32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Whether the rules forbid to make one of the nodes that the container has been given: then they can hold only when those are made.
///
/// # Errors
/// Rules that mean nothing.
pub(crate) fn forbid_nodes(asked: &[LinuxDeviceCgroup], nodes: &[LinuxDevice]) -> Result<bool, Error> {
    let rules = rules(asked, nodes)?;
    let making = made(nodes);
    Ok(making.iter().any(|node| !allows(&rules, node.kind, node.major, node.minor, MAKE)))
}

/// What the rules say of one device.
fn allows(rules: &[Rule], kind: Option<Kind>, major: Option<u32>, minor: Option<u32>, access: u8) -> bool {
    [MAKE, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
        let matching = |rule: &&Rule| {
            (rule.kind.is_none() || rule.kind == kind)
                && (rule.major.is_none() || rule.major == major)
                && (rule.minor.is_none() || rule.minor == minor)
                && rule.access & bit != 0
        };
        rules.iter().find(matching).is_some_and(|rule| rule.allow)
    })
}

impl Cgroup {
    /// Sets the rules, in place of those before.
    pub(crate) fn allow_devices(&self, asked: &[LinuxDeviceCgroup], nodes: &[LinuxDevice]) -> Result<(), Error> {
        self.set_rules(&rules(asked, nodes)?, asked.is_empty())
    }

    /// As [`Cgroup::allow_devices`], and that `nodes` may be made.
    pub(crate) fn allow_devices_and_making(
        &self,
        asked: &[LinuxDeviceCgroup],
        nodes: &[LinuxDevice],
    ) -> Result<(), Error> {
        let making = made(nodes).into_iter().map(|rule| Rule { access: MAKE, ..rule });
        let rules: Vec<Rule> = making.chain(rules(asked, nodes)?).collect();
        self.set_rules(&rules, asked.is_empty())
    }

    fn set_rules(&self, rules: &[Rule], by_default: bool) -> Result<(), Error> {
        if is_unified() {
            return self.attach(&program(rules));
        }
        let Some(base) = self.base("devices") else {
            // A hierarchy without the controller can't keep a container from a device that it has a node of, nor from making one.
            return if by_default {
                Ok(())
            } else {
                Err(Error::Unsupported { property: "linux.resources.devices: no controller \"devices\"".into() })
            };
        };
        let open = |file: &str| {
            let open = OpenOptions::new().write(true).open(base.join(file));
            open.map_err(|source| Error::system(format!("linux.resources.devices: open {file}"), source))
        };
        let (mut allow, mut deny) = (open("devices.allow")?, open("devices.deny")?);
        for line in v1_lines(rules) {
            let text = line.text();
            let to = if line.allow { &mut allow } else { &mut deny };
            to.write_all(text.as_bytes()).map_err(|source| {
                let act = if line.allow { "allow" } else { "forbid" };
                Error::system(format!("linux.resources.devices: {act} {text:?}"), source)
            })?;
        }
        Ok(())
    }

    /// The new program is attached before the old ones are taken off: at no time is more allowed than by both.
    fn attach(&self, program: &[Instruction]) -> Result<(), Error> {
        let fail = |act: &str| {
            let act = format!("linux.resources.devices: {act} the eBPF program");
            move |source| Error::system(act, source)
        };
        let Some(directory) = self.birthplace()? else { return Ok(()) };
        let before = bpf::device_programs(directory.as_fd()).map_err(fail("look for"))?;
        let new = bpf::load_device_program(program).map_err(fail("load"))?;
        bpf::attach_device_program(directory.as_fd(), new.as_fd()).map_err(fail("attach"))?;
        for old in before {
            bpf::detach_device_program(directory.as_fd(), old.as_fd()).map_err(fail("take off"))?;
        }
        Ok(())
    }
}

/// All rules, the first to be asked first: the last one of the specification decides.
fn rules(asked: &[LinuxDeviceCgroup], nodes: &[LinuxDevice]) -> Result<Vec<Rule>, Error> {
    let character = Some(Kind::Character);
    let mut rules: Vec<Rule> = DEFAULTS.iter().map(|(major, minor)| allowed(character, *major, *minor)).collect();
    for (i, rule) in asked.iter().enumerate().rev() {
        rules.push(rule_of(&format!("linux.resources.devices[{i}]"), rule)?);
    }
    rules.extend(made(nodes));
    Ok(rules)
}

fn allowed(kind: Option<Kind>, major: u32, minor: Option<u32>) -> Rule {
    Rule { allow: true, kind, major: Some(major), minor, access: ALL }
}

/// A rule for each node.
fn made(nodes: &[LinuxDevice]) -> Vec<Rule> {
    let rule = |node: &LinuxDevice| {
        let kind = match node.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => Kind::Character,
            LinuxDeviceType::B => Kind::Block,
            LinuxDeviceType::P | LinuxDeviceType::A => return None, // a pipe is no device
        };
        Some(allowed(Some(kind), u32::try_from(node.major()).ok()?, Some(u32::try_from(node.minor()).ok()?)))
    };
    nodes.iter().filter_map(rule).collect()
}

fn rule_of(property: &str, asked: &LinuxDeviceCgroup) -> Result<Rule, Error> {
    let kind = match asked.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(Kind::Block),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Character),
        LinuxDeviceType::P => return Err(Error::spec(property, "a pipe is no device")),
    };
    // −1 is what other engines write for "any".
    let number = |name: &str, number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| Error::spec(property, format!("{name} number {number} is out of range"))),
    };
    let mut access = 0;
    for letter in asked.access().as_deref().filter(|access| !access.is_empty()).unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MAKE,
            _ => return Err(Error::spec(property, format!("{letter:?} is no access (r, w, m)"))),
        };
    }
    // For all types together, numbers say nothing.
    let (major, minor) = (number("major", asked.major())?, number("minor", asked.minor())?);
    let (major, minor) = if kind.is_none() { (None, None) } else { (major, minor) };
    Ok(Rule { allow: asked.allow(), kind, major, minor, access })
}

impl Rule {
    /// As cgroup v1 writes it: `c 1:3 rwm`.
    fn text(&self) -> String {
        let kind = match self.kind {
            None => return "a".into(),
            Some(Kind::Block) => 'b',
            Some(Kind::Character) => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".into(), |number| number.to_string());
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')]
            .iter()
            .filter(|(bit, _)| self.access & bit != 0)
            .map(|(_, letter)| *letter)
            .collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// What is written on cgroup v1, in order: all is forbidden, then each rule. A rule for all types that is not about every access is one for each
/// type there.
fn v1_lines(rules: &[Rule]) -> Vec<Rule> {
    let everything = Rule { allow: false, kind: None, major: None, minor: None, access: ALL };
    let mut lines = vec![everything];
    for rule in rules.iter().rev() {
        if rule.kind.is_none() && rule.access != ALL {
            lines.extend([Kind::Block, Kind::Character].map(|kind| Rule { kind: Some(kind), ..*rule }));
        } else {
            lines.push(*rule);
        }
    }
    lines
}

// Registers, and the context that the kernel hands over in register 1: `u32 access_type` (access in the high half, kind in the low), `u32 major`,
// `u32 minor` (linux/bpf.h, `struct bpf_cgroup_dev_ctx`).
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Instructions (Documentation/bpf/standardization/instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_IF_NOT_EQUAL: u8 = 0x56;
const EXIT: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, constant }
}

/// The program: for each access that is asked for, the first rule that matches decides. As rules may speak of a part of the accesses only, those
/// decided are taken away one rule at a time, and what is left at the end is forbidden.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        let mut wanted = |register, value: u32| tests.push((register, value));
        if let Some(kind) = rule.kind {
            wanted(KIND, kind as u32);
        }
        if let Some(major) = rule.major {
            wanted(MAJOR, major);
        }
        if let Some(minor) = rule.minor {
            wanted(MINOR, minor);
        }
        let verdict = verdict(rule);
        for (i, (register, value)) in tests.iter().enumerate() {
            let over = tests.len() - i - 1 + verdict.len();
            program.push(instruction(JUMP_IF_NOT_EQUAL, *register, 0, over as i16, *value as i32));
        }
        program.extend(verdict);
    }
    program.extend([instruction(MOVE, RESULT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

/// What a rule that matches does.
fn verdict(rule: &Rule) -> Vec<Instruction> {
    let access = i32::from(rule.access);
    if rule.allow {
        // What it allows needs no other rule; if that was all, the answer is yes.
        vec![
            instruction(AND, ACCESS, 0, 0, !access & 0xffff),
            instruction(JUMP_IF_NOT_EQUAL, ACCESS, 0, 2, 0),
            instruction(MOVE, RESULT, 0, 0, 1),
            instruction(EXIT, 0, 0, 0, 0),
        ]
    } else {
        // If anything that is asked for is forbidden, the answer is no.
        vec![
            instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0),
            instruction(AND, SCRATCH, 0, 0, access),
            instruction(MOVE, RESULT, 0, 0, 0),
            instruction(0x16, SCRATCH, 0, 1, 0), // jump if equal: nothing of it is asked for
            instruction(EXIT, 0, 0, 0, 0),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a program as the kernel would; `None` for one that reads what was never written or does not end.
    fn run(program: &[Instruction], kind: Kind, major: u32, minor: u32, access: u8) -> Option<bool> {
        let context = [u32::from(access) << 16 | kind as u32, major, minor];
        let mut registers = [None::<u32>; 11];
        let mut at = 0;
        loop {
            let i = program.get(at)?;
            let (to, from) = ((i.registers & 0xf) as usize, (i.registers >> 4) as usize);
            at += 1;
            match i.code {
                LOAD_WORD => registers[to] = Some(context[i.offset as usize / 4]),
                MOVE => registers[to] = Some(i.constant as u32),
                MOVE_REGISTER => registers[to] = Some(registers[from]?),
                AND => registers[to] = Some(registers[to]? & i.constant as u32),
                SHIFT_RIGHT => registers[to] = Some(registers[to]? >> i.constant),
                JUMP_IF_NOT_EQUAL if registers[to]? != i.constant as u32 => at += i.offset as usize,
                0x16 if registers[to]? == i.constant as u32 => at += i.offset as usize,
                JUMP_IF_NOT_EQUAL | 0x16 => {}
                EXIT => return Some(registers[0]? == 1),
                other => panic!("{other:#x}"),
            }
        }
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let kind = prop_oneof![Just(None), Just(Some(Kind::Block)), Just(Some(Kind::Character))];
        let number = || prop_oneof![Just(None), (0..4_u32).prop_map(Some), any::<u32>().prop_map(Some)];
        (any::<bool>(), kind, number(), number(), 1..8_u8).prop_map(|(allow, kind, major, minor, access)| Rule {
            allow,
            kind,
            major,
            minor,
            access,
        })
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_rules_mean(
            rules in prop::collection::vec(any_rule(), 0..20),
            character in any::<bool>(), major in 0..5_u32, minor in 0..5_u32, access in 1..8_u8,
        ) {
            let kind = if character { Kind::Character } else { Kind::Block };
            let said = run(&program(&rules), kind, major, minor, access);
            prop_assert_eq!(said, Some(allows(&rules, Some(kind), Some(major), Some(minor), access)));
        }
    }

    fn asked(json: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_last_rule_decides_and_defaults_are_always_allowed() {
        let asked = asked(serde_json::json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw" },
            { "allow": true, "type": "b", "major": 8, "access": "r" },
            { "allow": false, "type": "b", "major": 8, "minor": 1 },
        ]));
        let program = program(&rules(&asked, &[]).unwrap());
        let said = |kind, major, minor, access| run(&program, kind, major, minor, access).unwrap();
        assert!(said(Kind::Character, 1, 3, ALL) && said(Kind::Character, 136, 77, READ | WRITE));
        assert!(said(Kind::Character, 10, 229, READ | WRITE) && !said(Kind::Character, 10, 229, MAKE));
        assert!(said(Kind::Block, 8, 0, READ) && !said(Kind::Block, 8, 0, WRITE) && !said(Kind::Block, 8, 1, READ));
        assert!(!said(Kind::Character, 10, 200, READ));
    }

    #[test]
    fn a_privileged_container_may_do_anything() {
        let asked = asked(serde_json::json!([{ "allow": false }, { "allow": true, "access": "rwm" }]));
        let rules = rules(&asked, &[]).unwrap();
        assert_eq!(run(&program(&rules), Kind::Block, 259, 0, ALL), Some(true));
        let lines: Vec<_> = v1_lines(&rules).iter().map(|line| (line.allow, line.text())).collect();
        assert_eq!(lines[..3], [(false, "a".into()), (false, "a".into()), (true, "a".into())]);
        assert!(lines.contains(&(true, "c 136:* rwm".into())), "{lines:?}");
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for (rule, expected) in [
            (serde_json::json!({ "allow": true, "access": "x" }), "linux.resources.devices[0]: 'x' is no access"),
            (serde_json::json!({ "allow": true, "type": "p" }), "linux.resources.devices[0]: a pipe"),
            (serde_json::json!({ "allow": true, "type": "c", "major": -7 }), "major number -7 is out of range"),
        ] {
            let error = rules(&asked(serde_json::json!([rule])), &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
