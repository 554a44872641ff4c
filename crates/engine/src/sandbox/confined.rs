//! What a process does to itself for which there is no safe form.
#![expect(
    unsafe_code,
    reason = "system calls that libraries do not wrap, of a process with one thread"
)]

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use super::filter::{self, Instruction};
use crate::process;

fn done(result: i64) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Enters namespaces of any kind. With a user namespace come all of its privileges, and only those.
pub(crate) fn enter(namespace: impl AsFd) -> io::Result<()> {
    // SAFETY: the calling process has one thread, and the file is open.
    done(unsafe { libc::setns(namespace.as_fd().as_raw_fd(), 0) }.into())
}

/// Gives every signal its default and blocks none.
pub(crate) fn reset_signals() {
    // SAFETY: only the calling process's own dispositions change, and none of them is a function of ours.
    unsafe {
        for signal in 1..=64 {
            // Those that cannot be caught, and two of the C library's own, refuse.
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Begins a keyring of its own, so that the keys of who started it are out of reach.
pub(crate) fn own_keyring(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the name is a string that lives as long as the call.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) };
    match done(joined) {
        // A kernel without keys keeps none.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        done => done,
    }
}

/// From here on the calling process makes no system call that the program forbids.
pub(crate) fn filter_calls(program: &[Instruction]) -> io::Result<()> {
    let mut program: Vec<libc::sock_filter> = program
        .iter()
        .map(|instruction| {
            let (code, jt, jf, k) = filter::parts(*instruction);
            libc::sock_filter { code, jt, jf, k }
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives as long as the call.
    done(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) })
}

/// Closes every open file from the fourth on but some.
pub(crate) fn close_others(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept
        .iter()
        .map(|file| u32::try_from(file.as_raw_fd()).expect("a file number is not negative"))
        .collect();
    kept.sort_unstable();
    let mut from = 3;
    for end in kept.into_iter().chain([u32::MAX]) {
        if from < end {
            // SAFETY: whoever owns the closed files in this process is never run again: it is a copy of the
            // launcher's memory that goes on with the kept files alone.
            unsafe { process::close_range(from, end - 1, 0) }?;
        }
        from = end.saturating_add(1);
    }
    Ok(())
}

/// Becomes a program. Returns only with why not.
pub(crate) fn become_program(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let list = |all: &[CString]| -> Vec<*const libc::c_char> {
        all.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (list(arguments), list(environment));
    // SAFETY: both lists end with a null pointer, and their strings live as long as the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends the process without running what its parent has to run at its exit.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: it has no arguments that could be wrong.
    unsafe { libc::_exit(code) }
}
