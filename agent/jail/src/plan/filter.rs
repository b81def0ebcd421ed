//! `linux.seccomp` → BPF, through libseccomp.

use std::io::{Read as _, Seek as _};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nacre_sys::seccomp::Program;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

use crate::error::Error;
use crate::step::Step;

/// The most names over all rules of one filter.
const MAX_RULES: usize = 16_384;

/// A compiled filter and how it is to be loaded.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Program,
    flags: u64,
}

impl Filter {
    /// Compiles `seccomp`. Names that this libseccomp does not know are left out: the default action covers them.
    pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Filter, Error> {
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
        let program = export(&context)?;
        Ok(Filter { program, flags: flags(seccomp.flags().as_deref().unwrap_or_default()) })
    }

    pub(crate) fn into_step(self) -> Step {
        Step::Filter { program: self.program, flags: self.flags }
    }
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
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Error::Unsupported { property: format!("{property} SCMP_ACT_NOTIFY") });
        }
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
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync
            | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
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
