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
        let source = serde_json::to_vec(seccomp).map_err(|error| Error::spec("linux.seccomp", error.to_string()))?;
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
    let mut rules = 0;
    for (i, syscall) in seccomp.syscalls().iter().flatten().enumerate() {
        rules += syscall.names().len();
        if rules > MAX_RULES {
            return Err(Error::spec("linux.seccomp.syscalls", format!("more than {MAX_RULES} names")));
        }
        add(&mut context, default, syscall, &format!("linux.seccomp.syscalls[{i}]"))?;
    }
    export(&context)
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
fn export(context: &ScmpFilterContext) -> Result<Program, Error> {
    let fail = |error: std::io::Error| Error::system("export the seccomp filter", error);
    let memory = rustix::fs::memfd_create(c"seccomp", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?;
    context.export_bpf(&memory).map_err(|error| Error::spec("linux.seccomp", error.to_string()))?;
    let mut file = std::fs::File::from(memory);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(fail)?;
    Program::from_bytes(&bytes).ok_or_else(|| Error::spec("linux.seccomp", "compiles to more than 4096 instructions"))
}
