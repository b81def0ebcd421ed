//! `linux.seccomp` → BPF, through libseccomp.

use std::io::{Read as _, Seek as _};
use std::path::PathBuf;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nacre_sys::seccomp::Program;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};
use serde::{Deserialize, Serialize};

use super::filter_cache;
use crate::error::Error;
use crate::step::Step;

/// The most names over all rules of one filter.
const MAX_RULES: usize = 16_384;

/// The call by which a child hands its listener on, once the filter holds for it.
const HANDED_ON_BY: &str = "sendmsg";

/// A compiled filter and how it is to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    pub(crate) program: Program,
    pub(crate) flags: u64,
    pub(crate) listener: Option<Listener>,
}

/// Who is asked about the calls that the filter neither allows nor refuses (`SCMP_ACT_NOTIFY`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listener {
    /// The UNIX socket that is sent the descriptor.
    pub(crate) path: PathBuf,
    /// What the specification wants it to be told.
    pub(crate) metadata: Option<String>,
}

impl Filter {
    /// Compiles `seccomp`, unless it was compiled before. Names that this libseccomp does not know are left out: the default action covers
    /// them.
    pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Filter, Error> {
        // What another version has kept was compiled by it.
        let mut source = env!("CARGO_PKG_VERSION").as_bytes().to_vec();
        serde_json::to_writer(&mut source, seccomp).map_err(|error| Error::spec("linux.seccomp", error.to_string()))?;
        let program = filter_cache::get(source, || program(seccomp))?;
        let mut flags = flags(seccomp.flags().as_deref().unwrap_or_default());
        let listener = listener(seccomp)?;
        if listener.is_some() {
            flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        } else if flags & WAIT_KILLABLE != 0 {
            return Err(Error::spec("linux.seccomp.flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a listener"));
        }
        Ok(Filter { program, flags, listener })
    }

    pub(crate) fn into_step(self) -> Step {
        Step::Filter { program: self.program, flags: self.flags }
    }
}

fn program(seccomp: &LinuxSeccomp) -> Result<Program, Error> {
    let fail = |error: &dyn std::error::Error| Error::spec("linux.seccomp", error.to_string());
    let errno = seccomp.default_errno_ret();
    let default = action("linux.seccomp.defaultAction", seccomp.default_action(), errno)?;
    let mut context = ScmpFilterContext::new(default).map_err(|e| fail(&e))?;
    for arch in seccomp.architectures().iter().flatten() {
        context.add_arch(architecture(*arch)?).map_err(|e| fail(&e))?;
    }
    let _ = context.set_ctl_optimize(2); // a binary tree; older libseccomp lacks it and makes a list
    let (mut rules, mut newest) = (0, None);
    for (i, syscall) in seccomp.syscalls().iter().flatten().enumerate() {
        rules += syscall.names().len();
        if rules > MAX_RULES {
            return Err(Error::spec("linux.seccomp.syscalls", format!("more than {MAX_RULES} names")));
        }
        add(&mut context, default, syscall, &format!("linux.seccomp.syscalls[{i}]"))?;
        let numbers = syscall.names().iter().filter_map(|name| ScmpSyscall::from_name(name).ok()).map(i32::from);
        newest = numbers.max().max(newest);
    }
    let bytes = export(&context)?;
    let prefix = match (default, newest.and_then(|newest| u32::try_from(newest).ok())) {
        (ScmpAction::Errno(errno), Some(newest)) if errno != libc::ENOSYS => newer_calls_are_missing(newest).to_vec(),
        _ => Vec::new(),
    };
    let program = Program::from_bytes(&[prefix, bytes].concat());
    program.ok_or_else(|| Error::spec("linux.seccomp", "compiles to more than 4096 instructions"))
}

/// The beginning of a filter that refuses what it does not name: a call whose number is higher than `newest`, the highest of those that it names, does
/// not exist (ENOSYS). Whoever wrote the filter could not know it, and programs try an older one then; any other errno they take for an answer.
fn newer_calls_are_missing(newest: u32) -> [u8; 48] {
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    const X32: u32 = 0x4000_0000;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    let jump = |test: u32| (libc::BPF_JMP | test | libc::BPF_K) as u16;
    let missing = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    // Code, how many to pass over if true and if not, and a constant. `struct seccomp_data` begins with the number of the call and the architecture.
    let program: [(u16, u8, u8, u32); 6] = [
        (LOAD, 0, 0, 4),
        (jump(libc::BPF_JEQ), 0, 4, AUDIT_ARCH_X86_64),
        (LOAD, 0, 0, 0),
        (jump(libc::BPF_JSET), 2, 0, X32),
        (jump(libc::BPF_JGT), 0, 1, newest),
        ((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, missing),
    ];
    let mut bytes = [0; 48];
    for (place, (code, yes, no, constant)) in bytes.chunks_exact_mut(8).zip(program) {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), constant.to_ne_bytes());
        place.copy_from_slice(&[c0, c1, yes, no, k0, k1, k2, k3]);
    }
    bytes
}

fn add(
    context: &mut ScmpFilterContext,
    default: ScmpAction,
    syscall: &LinuxSyscall,
    property: &str,
) -> Result<(), Error> {
    let action = action(property, syscall.action(), syscall.errno_ret())?;
    if action == default {
        return Ok(()); // libseccomp refuses a rule that changes nothing
    }
    let fail = |name: &str, error: &dyn std::error::Error| Error::spec(format!("{property} {name}"), error.to_string());
    let args: Vec<_> = syscall.args().iter().flatten().collect();
    if args.iter().any(|arg| arg.index() > 5) {
        return Err(Error::spec(property, "an argument's index is more than 5"));
    }
    // libseccomp takes one condition an argument; several on one are alternatives, each a rule of its own.
    let repeated = args.iter().enumerate().any(|(i, arg)| args.iter().skip(i + 1).any(|b| b.index() == arg.index()));
    for name in syscall.names() {
        let Ok(call) = ScmpSyscall::from_name(name) else { continue };
        if args.is_empty() {
            context.add_rule(action, call).map_err(|e| fail(name, &e))?;
        } else if repeated {
            for arg in &args {
                context.add_rule_conditional(action, call, &[condition(arg)]).map_err(|e| fail(name, &e))?;
            }
        } else {
            let conditions: Vec<_> = args.iter().map(|arg| condition(arg)).collect();
            context.add_rule_conditional(action, call, &conditions).map_err(|e| fail(name, &e))?;
        }
    }
    Ok(())
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let index = arg.index() as u32; // at most 5, checked above
    let (operator, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(index, operator, datum)
}

fn action(property: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, Error> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    let out_of_range = || Error::spec(property, format!("errnoRet {errno} is out of range"));
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno if errno > 4095 => return Err(out_of_range()),
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno as i32),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(u16::try_from(errno).map_err(|_| out_of_range())?),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch, Error> {
    let property = "linux.seccomp.architectures";
    let name = arch.to_string();
    name.parse().map_err(|_| Error::Unsupported { property: format!("{property} {name}") })
}

/// seccomp(2)'s flags. TSYNC means nothing for a process of one thread.
fn flags(flags: &[LinuxSeccompFilterFlag]) -> u64 {
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        }
    })
}

/// linux/seccomp.h, `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` (Linux 5.19).
const WAIT_KILLABLE: u64 = 1 << 5;

/// The listener, if any call is to be asked about.
fn listener(seccomp: &LinuxSeccomp) -> Result<Option<Listener>, Error> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    let rules = || seccomp.syscalls().iter().flatten();
    if seccomp.default_action() != notify && rules().all(|rule| rule.action() != notify) {
        return Ok(None);
    }
    let Some(path) = seccomp.listener_path().clone().filter(|path| path.is_absolute()) else {
        return Err(Error::spec("linux.seccomp.listenerPath", "SCMP_ACT_NOTIFY needs the absolute path of a listener"));
    };
    let allows = |action| matches!(action, LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog);
    let mut named = rules().filter(|rule| rule.names().iter().any(|name| name == HANDED_ON_BY)).peekable();
    let handed_on = match named.peek() {
        None => allows(seccomp.default_action()),
        Some(_) => named.all(|rule| allows(rule.action()) && rule.args().as_ref().is_none_or(Vec::is_empty)),
    };
    if !handed_on {
        let reason = format!("a filter with a listener must allow {HANDED_ON_BY}, by which the listener is handed on");
        return Err(Error::spec("linux.seccomp", reason));
    }
    Ok(Some(Listener { path, metadata: seccomp.listener_metadata().clone() }))
}

/// libseccomp writes its BPF to a descriptor: an anonymous file takes it.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, Error> {
    let fail = |error: std::io::Error| Error::system("export the seccomp filter", error);
    let memory = rustix::fs::memfd_create(c"seccomp", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    context.export_bpf(&memory).map_err(|error| Error::spec("linux.seccomp", error.to_string()))?;
    let mut file = std::fs::File::from(memory);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(fail)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// What a filter says of a call without arguments.
    fn said(filter: &Filter, arch: u32, number: u32) -> u32 {
        let bytes = filter.program.to_bytes();
        let instructions: Vec<(u16, usize, usize, u32)> = bytes
            .chunks_exact(8)
            .map(|i| {
                let constant = u32::from_ne_bytes(i[4..8].try_into().unwrap());
                (u16::from_ne_bytes([i[0], i[1]]), i[2].into(), i[3].into(), constant)
            })
            .collect();
        let (mut at, mut loaded) = (0, 0);
        loop {
            let (code, yes, no, constant) = instructions[at];
            let test = match code {
                0x20 => {
                    loaded = [number, arch, 0, 0, 0, 0, 0, 0][constant as usize / 4];
                    at += 1;
                    continue;
                }
                0x06 => return constant,
                0x05 => {
                    at += 1 + constant as usize;
                    continue;
                }
                0x15 => loaded == constant,
                0x25 => loaded > constant,
                0x35 => loaded >= constant,
                0x45 => loaded & constant != 0,
                other => panic!("{other:#x}"),
            };
            at += 1 + if test { yes } else { no };
        }
    }

    fn filter(default_errno: Option<u32>, action: &str) -> Filter {
        let json = serde_json::json!({
            "defaultAction": action, "defaultErrnoRet": default_errno, "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{ "names": ["read", "openat2", "no_such_call"], "action": "SCMP_ACT_LOG" }],
        });
        Filter::compile(&serde_json::from_value(json).unwrap()).unwrap()
    }

    #[test]
    fn a_call_that_is_newer_than_the_filter_does_not_exist() {
        let (log, refused, missing) =
            (libc::SECCOMP_RET_LOG, libc::SECCOMP_RET_ERRNO | 1, libc::SECCOMP_RET_ERRNO | 38);
        let new = filter(None, "SCMP_ACT_ERRNO");
        // read, mkdir, openat2, faccessat2, lsm_list_modules (Linux 6.8).
        for (number, expected) in [(0, log), (83, refused), (437, log), (439, missing), (461, missing)] {
            assert_eq!(said(&new, X86_64, number), expected, "{number}");
        }
        // Other numbers mean other calls there.
        assert_eq!(said(&new, I386, 461), refused);
        assert_eq!((said(&filter(Some(38), "SCMP_ACT_ERRNO"), X86_64, 461)), missing);
        assert_eq!((said(&filter(None, "SCMP_ACT_KILL_PROCESS"), X86_64, 461)), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!((said(&filter(None, "SCMP_ACT_ALLOW"), X86_64, 461)), libc::SECCOMP_RET_ALLOW);
    }
}
