//! Before the C library: what a program does in its first instructions, when starting over costs next to nothing yet.
//!
//! [`nacre_protected_start`] is an entry point for programs that make containers (`-Wl,-e,nacre_protected_start`). Between fork and exec a process
//! of a container still runs its maker's program, and a script with the interpreter `/proc/self/exe` runs it in the container. Who gets hold of
//! the file there could write to it, and so to the host (CVE-2019-5736). A file can't be written to through a mount that is read-only, nor if
//! it is immutable; so where the program's is neither, it starts again through a read-only copy of its mount that nobody else sees.

// UNSAFETY: nothing is there yet but the kernel: no thread pointer, no relocations of a static program, so no function of libc.
#![expect(unsafe_code, reason = "the program's first instructions")]

use std::arch::{asm, global_asm};
use std::ffi::{CStr, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

/// The commands that always make processes of containers, in eight bytes each.
const COMMANDS: [u64; 3] = [word(b"create\0\0"), word(b"run\0\0\0\0\0"), word(b"exec\0\0\0\0")];

/// Why the program was not protected although it should be: the errno.
static FAILURE: AtomicI32 = AtomicI32::new(0);

/// Where the kernel has put the arguments and the environment.
static STACK: AtomicPtr<usize> = AtomicPtr::new(std::ptr::null_mut());

global_asm!(
    ".globl nacre_protected_start",
    ".type nacre_protected_start, @function",
    "nacre_protected_start:",
    "xor ebp, ebp",   // the outermost frame
    "mov rdi, rsp",   // the number of arguments, the arguments, the environment (System V ABI, "Process Initialization")
    "push rdx",       // what a dynamic linker wants to be called at exit
    "sub rsp, 8",     // calls want the stack aligned
    "call {protect}",
    "add rsp, 8",
    "pop rdx",
    "jmp _start",
    ".size nacre_protected_start, . - nacre_protected_start",
    protect = sym protect,
);

/// What Rust's runtime does for a program with a `main` of its own, and one without has to do: makes sure that descriptors 0 to 2 are open, so that
/// none of the program's own is taken for one of them, and has a write to a pipe that nobody reads fail instead of ending the program.
pub fn settle() {
    for fd in 0..3 {
        // SAFETY: no memory is passed but a string that outlives the call; a descriptor that is not open is nobody's.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR); // takes the lowest free number, which is `fd`
            }
        }
    }
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// For the program's `main`: it must not make a process of a container if this fails.
///
/// # Errors
/// Why the program runs from a file that a container could write to.
pub fn protected() -> io::Result<()> {
    match FAILURE.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// For a command that turns out to make processes of containers: starts the program over, if it is not protected. Nothing must have been done yet
/// that must not be done twice.
///
/// # Errors
/// As [`protected`]; or if the program has another entry point.
pub fn protect_now() -> io::Result<()> {
    let stack = STACK.load(Ordering::Relaxed);
    if stack.is_null() {
        return Err(io::Error::other("the program has not been started by nacre_protected_start"));
    }
    // SAFETY: it is the one that the kernel laid out, and whose strings nobody has changed.
    unsafe { protect_program(stack) };
    protected()
}

const fn word(text: &[u8; 8]) -> u64 {
    u64::from_le_bytes(*text)
}

unsafe extern "C" fn protect(stack: *mut usize) {
    STACK.store(stack, Ordering::Relaxed);
    // SAFETY: the kernel has laid out the stack so.
    unsafe {
        if makes_processes(stack.add(1).cast()) {
            protect_program(stack);
        }
    }
}

/// Starts the program again if it must be. Who may not mount may not write to a system's program either, and goes on.
unsafe fn protect_program(stack: *const usize) {
    // SAFETY: there is a NULL after the arguments and another after the environment.
    unsafe {
        let argv = stack.add(1).cast::<*const c_char>();
        let envp = argv.add(*stack + 1);
        let program = open(c"/proc/self/exe");
        if program < 0 {
            FAILURE.store(-program as i32, Ordering::Relaxed);
            return;
        }
        if !is_fixed(program) {
            let error = start_again(program, argv, envp);
            if error != -libc::EPERM as isize {
                FAILURE.store(-error as i32, Ordering::Relaxed);
            }
        }
        syscall(libc::SYS_close, [program, 0, 0, 0, 0]);
    }
}

unsafe fn makes_processes(mut argv: *const *const c_char) -> bool {
    // SAFETY: the array ends in NULL, and no byte after a string's end is read.
    unsafe {
        while !(*argv).is_null() {
            let mut first: u64 = 0;
            for i in 0..8 {
                let byte = *(*argv).add(i) as u8;
                if byte == 0 {
                    break;
                }
                first |= u64::from(byte) << (8 * i);
            }
            if COMMANDS[0] == first || COMMANDS[1] == first || COMMANDS[2] == first {
                return true;
            }
            argv = argv.add(1);
        }
    }
    false
}

fn open(path: &CStr) -> isize {
    let flags = (libc::O_PATH | libc::O_CLOEXEC) as isize;
    // SAFETY: the string outlives the call.
    unsafe { syscall(libc::SYS_open, [path.as_ptr() as isize, flags, 0, 0, 0]) }
}

/// Whether nobody can write to the file that `program` stands for, or not through it (statfs(2); statx(2); chattr(1) `+i`, fs-verity).
fn is_fixed(program: isize) -> bool {
    /// `struct statfs`: eleven words, the eleventh being the flags of the mount, and four to spare.
    type Statfs = [u64; 15];
    const FIXED: u64 = (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_VERITY) as u64;
    let mut mount = MaybeUninit::<Statfs>::uninit();
    let mut file = MaybeUninit::<libc::statx>::uninit();
    let nothing = c"".as_ptr() as isize;
    // SAFETY: both structures have the kernel's size, and are read only once it has filled them.
    unsafe {
        if syscall(libc::SYS_fstatfs, [program, mount.as_mut_ptr() as isize, 0, 0, 0]) == 0
            && (*mount.as_ptr())[10] & libc::ST_RDONLY != 0
        {
            return true;
        }
        let args =
            [program, nothing, libc::AT_EMPTY_PATH as isize, libc::STATX_MODE as isize, file.as_mut_ptr() as isize];
        syscall(libc::SYS_statx, args) == 0 && (*file.as_ptr()).stx_attributes & FIXED != 0
    }
}

/// Returns only if it fails, with the error.
unsafe fn start_again(program: isize, argv: *const *const c_char, envp: *const *const c_char) -> isize {
    const COPY: u32 = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let read_only = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let (nothing, empty) = (c"".as_ptr() as isize, libc::AT_EMPTY_PATH as isize);
    let size = size_of::<libc::mount_attr>() as isize;
    // SAFETY: strings, structure and arrays outlive the calls.
    unsafe {
        let tree = syscall(libc::SYS_open_tree, [program, nothing, COPY as isize | empty, 0, 0]);
        if tree < 0 {
            return tree;
        }
        let mut error = syscall(libc::SYS_mount_setattr, [tree, nothing, empty, &raw const read_only as isize, size]);
        if error == 0 {
            error = syscall(libc::SYS_execveat, [tree, nothing, argv as isize, envp as isize, empty]);
        }
        syscall(libc::SYS_close, [tree, 0, 0, 0, 0]);
        error
    }
}

unsafe fn syscall(number: i64, [a, b, c, d, e]: [isize; 5]) -> isize {
    let result;
    // SAFETY: as the caller's; the kernel changes no register but these three.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
             lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}
