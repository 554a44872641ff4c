//! New processes of the launcher, and what they are given.
#![expect(
    unsafe_code,
    reason = "clone3, unshare, close_range and dup2 onto a standard file have no safe form"
)]

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd},
};

use rustix::process::Pid;

use crate::rootfs::IDS;

/// Like fork, in new `namespaces` (and with `CLONE_PARENT`, as a sibling), born in a version 2 control `group`: moving a process there later would wait for
/// all CPUs to have noticed, for many milliseconds. None: this is the child.
///
/// # Safety
/// The process must have one thread, or the child must not allocate, lock, or return.
pub(crate) unsafe fn clone(namespaces: i32, group: Option<BorrowedFd<'_>>) -> io::Result<Option<Pid>> {
    let unsigned = |number: i32| u64::try_from(number).expect("flags and file numbers are not negative");
    // SAFETY: all zero is a valid value of this structure of numbers.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = unsigned(namespaces);
    if namespaces & libc::CLONE_PARENT == 0 {
        arguments.exit_signal = unsigned(libc::SIGCHLD);
    }
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = unsigned(group.as_raw_fd());
    }
    // SAFETY: without CLONE_VM the child has its own copy of all memory; the rest is up to the caller.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match i32::try_from(pid) {
        Ok(0) => Ok(None),
        Ok(pid @ 1..) => Ok(Pid::from_raw(pid)),
        Ok(_) | Err(_) => Err(io::Error::last_os_error()),
    }
}

/// See clone(2).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A user namespace in which `first_id` and the following ids are 0 and following. It holds no process.
pub(crate) fn user_namespace(first_id: u32) -> io::Result<OwnedFd> {
    let pid = waiter(libc::CLONE_NEWUSER)?;
    let number = pid.as_raw_nonzero();
    let map = format!("0 {first_id} {IDS}");
    let made = fs::write(format!("/proc/{number}/uid_map"), &map)
        .and_then(|()| fs::write(format!("/proc/{number}/gid_map"), &map))
        .and_then(|()| crate::network::open_namespace(&format!("/proc/{number}/ns/user")));
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    made
}

/// A process in new namespaces that does nothing but wait. It shares memory and files with the caller, so that there is
/// nothing to copy and nothing to give back: a launcher of a thousand instances has many of both.
fn waiter(namespaces: i32) -> io::Result<Pid> {
    extern "C" fn wait(_: *mut libc::c_void) -> libc::c_int {
        loop {
            // SAFETY: it only waits.
            unsafe { libc::pause() };
        }
    }
    static STACK: [std::sync::atomic::AtomicU64; 512] = [const { std::sync::atomic::AtomicU64::new(0) }; 512];
    let flags = namespaces | libc::CLONE_VM | libc::CLONE_FILES | libc::SIGCHLD;
    let top = STACK.as_ptr_range().end.cast_mut().cast();
    // SAFETY: the function never returns and only makes a system call. Whoever waits beside it, on the same stack, has
    // the same words at the same places there.
    let pid = unsafe { libc::clone(wait, top, flags, std::ptr::null_mut()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process without a number"))
}

/// From this number on are the files that are kept for long, out of the way of [`own_files`].
const ASIDE: i32 = 1024;

/// The same file under a number from [`ASIDE`] on, where the limit of open files allows it.
pub(crate) fn aside(file: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&file, ASIDE).unwrap_or(file)
}

/// Gives a child that was born with `CLONE_FILES` files of its own: those that it `needs`, and others below [`ASIDE`].
/// The parent must have left open what it needs until then. To copy the table of a launcher of a thousand instances,
/// and to close all that is in the copy, would take longer than anything else in making a sandbox.
pub(crate) fn own_files(needs: &[BorrowedFd<'_>]) -> io::Result<()> {
    let last = needs.iter().map(AsRawFd::as_raw_fd).max().unwrap_or(0);
    let from = ASIDE.max(last.saturating_add(1));
    // SAFETY: nothing is closed but in the copy, whose owner is never run again: the child is a copy of the parent's
    // memory that goes on with the files it needs.
    unsafe { close_range(from.unsigned_abs(), u32::MAX, libc::CLOSE_RANGE_UNSHARE) }
}

/// Closes the files under these numbers, or what `flags` says instead. See `close_range`(2).
///
/// # Safety
/// Whoever owns the closed files in this process must never use them again.
pub(crate) unsafe fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: up to the caller.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Gives the calling thread a new network namespace with nothing in it.
pub(crate) fn new_network() -> io::Result<()> {
    // SAFETY: of the flags only NEWNET is set, which gives no access to memory or files of others.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
    Ok(())
}

/// A file descriptor of standard input that is at its end. Not `/dev/null`: the runtime gives the device's node to the
/// instance's user, for the whole machine.
pub(crate) fn empty_input() -> io::Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    drop(write);
    Ok(read)
}

/// Closes every file from the fourth on when the program is replaced.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: it only sets flags of this process's own files.
    unsafe { close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }
}

/// Replaces a file number of the calling process, for standard input, output and error.
pub(crate) fn become_standard(file: &OwnedFd, number: i32) -> io::Result<()> {
    // SAFETY: the number is one of 0, 1 and 2, which stay open for the life of the process.
    let mut standard = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    rustix::io::dup2(file, &mut standard)?;
    Ok(())
}
