//! What is mounted in a sandbox, from its root on. Every path is looked up as the sandbox would, so that no link of an
//! image leads out of it.
#![expect(unsafe_code, reason = "mount_setattr has no safe form")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_bind, mount_change, move_mount,
        open_tree,
    },
};

use super::plan::{Mount, Plan, What};
use crate::rootfs::describe;

/// Devices of the machine that every sandbox has.
const DEVICES: [&str; 6] = ["null", "zero", "full", "tty", "random", "urandom"];

/// Links in `/dev`, and where they lead.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

fn in_words(what: &str, path: &str) -> impl FnOnce(Errno) -> String {
    let what = format!("{what} {path}");
    move |error| format!("cannot {what}: {}", io::Error::from(error))
}

/// Makes the root file system of `plan` this process's root, with all that is mounted in it.
pub(crate) fn enter(plan: &Plan) -> Result<(), String> {
    let place = plan.root.display().to_string();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(in_words("leave the mounts of", "the machine"))?;
    // A mount of this namespace's own: the one that was brought along is locked and could not become a root.
    mount_bind(&plan.root, &plan.root).map_err(in_words("mount", &place))?;
    let root = rustix::fs::open(
        &plan.root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(in_words("open", &place))?;
    for mount in &plan.mounts {
        put(&root, mount)?;
    }
    devices(&root)?;
    for path in &plan.masked {
        mask(&root, path).map_err(in_words("mask", path))?;
    }
    for (name, value) in &plan.sysctls {
        set(&root, name, value).map_err(in_words("set", name))?;
    }
    for path in &plan.read_only {
        protect(&root, path).map_err(in_words("protect", path))?;
    }
    match directory(&root, &plan.process.directory) {
        // A file of that name is told when the process is to go there.
        Ok(_) | Err(Errno::NOTDIR) => {}
        Err(error) => return Err(in_words("make the directory", &plan.process.directory)(error)),
    }
    rustix::process::fchdir(&root)
        .and_then(|()| rustix::process::pivot_root(".", "."))
        .and_then(|()| rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH))
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(in_words("enter", &place))
}

/// What is at `path`, with any link on the way taken as the sandbox would.
fn look_up(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// The directory at `path`, made with those above it where it is missing.
fn directory(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    match look_up(root, path) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let path = Path::new(path);
    let (Some(Component::Normal(name)), Some(parent)) = (path.components().next_back(), path.parent()) else {
        return Err(Errno::INVAL);
    };
    let parent = directory(root, parent.to_str().ok_or(Errno::INVAL)?)?;
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    look_up(root, path.to_str().ok_or(Errno::INVAL)?)
}

fn place(tree: &OwnedFd, at: &OwnedFd) -> rustix::io::Result<()> {
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", at, "", both)
}

/// A copy of the mount at a path, that can be changed and placed.
fn copy(from: impl AsFd, path: impl rustix::path::Arg, deep: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if deep {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(from, path, flags)
}

fn change(tree: &OwnedFd, attributes: u64, deep: bool) -> rustix::io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if deep { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty string that lives as long as the call, and the attributes have the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn made(
    kind: &str,
    source: &str,
    options: &[(String, Option<String>)],
    attributes: u64,
) -> rustix::io::Result<OwnedFd> {
    let kind = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&kind, "source", source)?;
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&kind, name.as_str(), value.as_str())?,
            None => fsconfig_set_flag(&kind, name.as_str())?,
        }
    }
    fsconfig_create(&kind)?;
    let attributes = u32::try_from(attributes).map_err(|_| Errno::INVAL)?;
    fsmount(
        &kind,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::from_bits_retain(attributes),
    )
}

fn put(root: &OwnedFd, mount: &Mount) -> Result<(), String> {
    let told = |error| in_words("mount", &mount.at)(error);
    match &mount.what {
        What::New(kind, source, options) => {
            let at = directory(root, &mount.at).map_err(told)?;
            let tree = made(kind, source, options, mount.attributes).map_err(told)?;
            place(&tree, &at).map_err(told)
        }
        What::Bound(source) => {
            let at = directory(root, &mount.at).map_err(told)?;
            let tree = copy(CWD, source, true).map_err(told)?;
            change(&tree, mount.attributes, true).map_err(told)?;
            place(&tree, &at).map_err(told)
        }
        What::Groups => groups(root, mount),
    }
}

/// The container's own groups: one tree, or a directory with one mount for each hierarchy that this process is in.
fn groups(root: &OwnedFd, mount: &Mount) -> Result<(), String> {
    let told = |error| in_words("mount", &mount.at)(error);
    let own = std::fs::read_to_string("/proc/self/cgroup").map_err(describe("read the control groups"))?;
    let hierarchies: Vec<&str> = own
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|controllers| !controllers.is_empty())
        .collect();
    let at = directory(root, &mount.at).map_err(told)?;
    if hierarchies.is_empty() {
        let tree = made("cgroup2", "cgroup", &[], mount.attributes).map_err(told)?;
        return place(&tree, &at).map_err(told);
    }
    let size = [("size".to_owned(), Some("1024k".to_owned()))];
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    let parent = made("tmpfs", "cgroup", &size, mount.attributes & !read_only).map_err(told)?;
    place(&parent, &at).map_err(told)?;
    for controllers in hierarchies {
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let mut options: Vec<(String, Option<String>)> = Vec::new();
        for controller in controllers.split(',') {
            match controller.split_once('=') {
                Some((key, value)) => {
                    options.push(("none".to_owned(), None));
                    options.push((key.to_owned(), Some(value.to_owned())));
                }
                None => options.push((controller.to_owned(), None)),
            }
        }
        let inside = format!("{}/{name}", mount.at);
        let at = directory(root, &inside).map_err(in_words("mount", &inside))?;
        let tree = made("cgroup", &inside, &options, mount.attributes).map_err(in_words("mount", &inside))?;
        place(&tree, &at).map_err(in_words("mount", &inside))?;
    }
    Ok(())
}

/// The devices of the machine, and links to what every process has of its own.
fn devices(root: &OwnedFd) -> Result<(), String> {
    let told = |error| in_words("furnish", "/dev")(error);
    let directory = directory(root, "/dev").map_err(told)?;
    let attributes = u64::from((MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC).bits());
    for name in DEVICES {
        let of_machine = format!("/dev/{name}");
        let told = in_words("bring in", &of_machine);
        let bring = || {
            rustix::fs::openat(
                &directory,
                name,
                OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::from_raw_mode(0o666),
            )?;
            let at = look_up(root, &of_machine)?;
            let tree = copy(CWD, &of_machine, false)?;
            change(&tree, attributes, false)?;
            place(&tree, &at)
        };
        bring().map_err(told)?;
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, &directory, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(told(error)),
        }
    }
    Ok(())
}

/// Hides a file or directory. Nothing there is success.
fn mask(root: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let at = match look_up(root, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        at => at?,
    };
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&at)?.st_mode);
    let tree = if kind == rustix::fs::FileType::Directory {
        made(
            "tmpfs",
            "tmpfs",
            &[("size".to_owned(), Some("0k".to_owned()))],
            read_only,
        )?
    } else {
        let tree = copy(CWD, "/dev/null", false)?;
        change(&tree, read_only, false)?;
        tree
    };
    place(&tree, &at)
}

/// Makes a part read-only. Nothing there is success.
fn protect(root: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let at = match look_up(root, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        at => at?,
    };
    let tree = copy(&at, "", true)?;
    change(&tree, u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), true)?;
    place(&tree, &at)
}

fn set(root: &OwnedFd, name: &str, value: &str) -> rustix::io::Result<()> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let file = rustix::fs::openat2(
        root,
        path,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

/// Whether the file at a path, as this process sees it, may be run by it.
pub(super) fn runs(path: &str) -> rustix::io::Result<()> {
    rustix::fs::accessat(CWD, path, rustix::fs::Access::EXEC_OK, AtFlags::EACCESS)?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::stat(path)?.st_mode);
    if kind == rustix::fs::FileType::RegularFile {
        Ok(())
    } else {
        Err(Errno::ACCESS)
    }
}
