//! Which system calls an instance may make. Everything not named here fails with `ENOSYS`, so that programs fall back
//! as on an older kernel; what is refused on purpose fails with `EPERM`.

use serde_json::{Value, json};

/// Allowed with any arguments.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chroot
    clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2
    dup3 epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat
    fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync ftruncate futex
    futex_requeue futex_wait futex_waitv futex_wake futimesat get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents
    getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority
    getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getxattr
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents
    io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lgetxattr link linkat listen listxattr llistxattr lremovexattr lseek lsetxattr lstat
    madvise map_shadow_stack mbind membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock
    mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink mremap
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause
    pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64
    preadv preadv2 prlimit64 process_madvise process_mrelease pselect6 pwrite64 pwritev pwritev2 read readahead
    readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr rename renameat renameat2
    restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto
    set_mempolicy set_mempolicy_home_node set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid setgroups setitimer
    setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setsockopt setuid setxattr shmat shmctl
    shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice stat statfs statx symlink symlinkat sync
    sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink unlinkat
    utime utimensat utimes vfork vmsplice wait4 waitid write writev
";

/// Refused with `EPERM`: they reach other namespaces, the kernel itself, or other processes' memory.
const REFUSED: &str = "
    acct add_key bpf delete_module fanotify_init finit_module fsconfig fsmount fsopen fspick get_kernel_syms init_module
    ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mount mount_setattr move_mount move_pages
    nfsservctl open_by_handle_at open_tree perf_event_open pivot_root process_vm_readv process_vm_writev ptrace
    quotactl quotactl_fd reboot request_key setdomainname sethostname setns settimeofday clock_settime swapoff swapon
    syslog umount2 unshare userfaultfd vhangup
";

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Of those refused to instances, what a builder of images cannot do without: to make namespaces and mounts below its
/// own. Its build steps are filtered once more, by the builder.
const BUILDERS: &str = "
    fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root setdomainname sethostname setns
    umount2 unshare
";

/// Every flag of clone(2) that makes a namespace.
const NEW_NAMESPACES: u32 = 0x7E02_0000;

/// Address families of socket(2): local, internet, and asking about one's own network.
const FAMILIES: [u32; 4] = [1, 2, 10, 16];

/// Personalities of personality(2): Linux, with or without a fixed address space layout, and the question.
const PERSONALITIES: [u32; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

fn names(table: &str) -> Vec<&str> {
    table.split_whitespace().collect()
}

/// The `linux.seccomp` object of an instance's OCI configuration.
pub(crate) fn profile() -> Value {
    let clone = json!({
        "names": ["clone"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
    });
    of(names(ALLOWED), names(REFUSED), clone)
}

/// The same of a builder.
pub(crate) fn builders() -> Value {
    let its = names(BUILDERS);
    let refused = names(REFUSED).into_iter().filter(|name| !its.contains(name)).collect();
    let clone = json!({"names": ["clone"], "action": "SCMP_ACT_ALLOW"});
    of([names(ALLOWED), its].concat(), refused, clone)
}

fn of(allowed: Vec<&str>, refused: Vec<&str>, clone: Value) -> Value {
    let equals = |value: u32| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let mut rules = vec![
        json!({"names": allowed, "action": "SCMP_ACT_ALLOW"}),
        json!({"names": refused, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM}),
        clone,
        // Its flags are in memory, where a filter cannot look: programs use clone instead.
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}),
    ];
    rules.extend(
        FAMILIES.map(|family| json!({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": equals(family)})),
    );
    rules.extend(
        PERSONALITIES.map(|kind| json!({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": equals(kind)})),
    );
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": [architecture()],
        "syscalls": rules,
    })
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "SCMP_ARCH_AARCH64"
    } else {
        "SCMP_ARCH_X86_64"
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_call_is_in_two_tables_or_twice_in_one() {
        let all = [names(ALLOWED), names(REFUSED)].concat();
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        for special in ["clone", "clone3", "socket", "personality"] {
            assert!(!distinct.contains(&special), "{special}");
        }
    }
}
