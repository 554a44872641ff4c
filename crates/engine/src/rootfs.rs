//! The root file system of an instance: the image's layers, shared by all and seen through a shift of ids, below a
//! layer in memory that is the instance's own.
//!
//! Everything here runs in the short-lived process that becomes the runtime's `create`, in a mount namespace of its
//! own: no mount is ever visible outside, and none outlives the instance. Pages of the upper layer are charged to
//! whoever writes them first, the instance.
#![expect(unsafe_code, reason = "mount_setattr and unshare have no safe form")]

use std::{
    fs,
    io::{self, Write as _},
    net::Ipv4Addr,
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, chown},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree,
    },
    thread::UnshareFlags,
};

use crate::{secret_files, wire::VolumeSize};

/// How many ids an instance has of its own.
pub(crate) const IDS: u32 = 65_536;

/// What every instance is called: as on Cloud Run.
pub(crate) const HOST_NAME: &str = "localhost";

/// The directory below the instance's tmpfs that becomes `/`.
pub(crate) const MERGED: &str = "merged";

/// What went wrong, in words for the instance's failure.
pub(crate) fn describe(what: &str) -> impl FnOnce(io::Error) -> String + '_ {
    move |error| format!("cannot {what}: {error}")
}

/// Leaves the mounts of the parent behind: what is mounted from now on is seen by this process alone.
pub(crate) fn leave_mounts() -> io::Result<()> {
    // SAFETY: of the flags only NEWNS is set, which gives no access to memory or files of others.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    Ok(())
}

/// What the files in `/etc` tell of names.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    pub(crate) resolver: Option<Ipv4Addr>,
    /// What else `/etc/hosts` calls 127.0.0.1.
    pub(crate) containers: &'a [String],
}

/// Mounts the root file system at `<place>/merged` and tells it `names`. Needs a mount namespace that was left by
/// [`leave_mounts`], and changes the working directory to `place`.
pub(crate) fn assemble(
    place: &Path,
    layers: &[PathBuf],
    ids: impl AsFd,
    first_id: u32,
    names: &Names<'_>,
) -> Result<(), String> {
    mount(
        "tmpfs",
        place,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=0711,size=0,nr_inodes=0"),
    )
    .map_err(|e| describe("mount a tmpfs")(e.into()))?;
    std::env::set_current_dir(place).map_err(describe("enter the tmpfs"))?;

    let mut lower = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let point = format!("l{index}");
        shifted(layer, &ids, &point).map_err(|error| format!("cannot mount the layer {}: {error}", layer.display()))?;
        lower.push(point);
    }
    lower.reverse();

    let directory = |name: &str, mode: u32| -> Result<(), String> {
        let made = fs::DirBuilder::new().mode(mode).create(name);
        made.and_then(|()| chown(name, Some(first_id), Some(first_id)))
            .map_err(describe("make a directory"))
    };
    directory("upper", 0o755)?;
    directory("work", 0o700)?;
    directory(MERGED, 0o755)?;
    let options = format!(
        "lowerdir={},upperdir=upper,workdir=work,xino=off,volatile",
        lower.join(":")
    );
    let options = std::ffi::CString::new(options).expect("no zero byte in it");
    mount(
        "overlay",
        MERGED,
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(options.as_c_str()),
    )
    .map_err(|e| describe("mount the overlay")(e.into()))?;
    furnish(first_id, names).map_err(describe("write /etc and /tmp of the instance"))
}

/// Makes the volumes of an instance below `place`: each a tmpfs that belongs to root inside and, unless it is a secret's,
/// is open to every user there. Whoever writes a page is charged for it.
pub(crate) fn make_volumes(place: &Path, sizes: &[VolumeSize], first_id: u32) -> io::Result<()> {
    for (index, volume) in sizes.iter().enumerate() {
        let (mode, size) = match volume {
            VolumeSize::Memory(size) => ("1777", size),
            VolumeSize::Secret(size) => ("0755", size),
        };
        let point = place.join(index.to_string());
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&point)?;
        let options = format!("mode={mode},uid={first_id},gid={first_id},size={size}");
        let options = std::ffi::CString::new(options).expect("no zero byte in it");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", &point, "tmpfs", flags, Some(options.as_c_str()))?;
        if let VolumeSize::Secret(_) = volume {
            secret_files::furnish(&point, first_id)?;
        }
    }
    Ok(())
}

/// Mounts `layer` at `point`, read-only, its ids shifted by the mapping of the user namespace `ids`.
fn shifted(layer: &Path, ids: impl AsFd, point: &str) -> io::Result<()> {
    shift(layer, ids, point, libc::MOUNT_ATTR_RDONLY)
}

/// The same to be written to: what root of that user namespace makes there belongs to the machine's root on the disk.
pub(crate) fn shifted_writable(directory: &Path, ids: impl AsFd, point: &str) -> io::Result<()> {
    shift(directory, ids, point, 0)
}

fn shift(layer: &Path, ids: impl AsFd, point: &str, attributes: u64) -> io::Result<()> {
    fs::create_dir(point)?;
    let tree = open_tree(
        rustix::fs::CWD,
        layer,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | attributes,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(ids.as_fd().as_raw_fd()).expect("a file number is not negative"),
    };
    // SAFETY: the path is an empty string that lives as long as the call, and the attributes have the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    move_mount(
        &tree,
        "",
        rustix::fs::CWD,
        point,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Puts what every instance has into its root: `/tmp` for everybody, and the network's files in `/etc`. Paths are
/// resolved as the instance would, so that no link of an image leads out.
fn furnish(first_id: u32, names: &Names<'_>) -> io::Result<()> {
    let root = rustix::fs::open(
        MERGED,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if let Some(tmp) = directory_in(&root, "tmp", first_id)? {
        rustix::fs::fchmod(&tmp, Mode::from_raw_mode(0o1777))?;
    }
    let Some(etc) = directory_in(&root, "etc", first_id)? else {
        return Ok(());
    };
    let address = crate::network::ADDRESS;
    let mut hosts = format!("127.0.0.1 localhost\n::1 localhost\n{address} {HOST_NAME}\n");
    if let Some(address) = names.resolver {
        // As on Google's machines: who looks here need not ask.
        let [long, short] = crate::egress::METADATA;
        hosts.extend([&address.to_string(), " ", long, " ", short, "\n"]);
    }
    for name in names.containers {
        hosts.push_str("127.0.0.1 ");
        hosts.push_str(name);
        hosts.push('\n');
    }
    let resolv = match names.resolver {
        // A question that gets lost, as the first may, is soon asked again.
        Some(address) => format!("nameserver {address}\noptions timeout:1 attempts:5\n"),
        None => "# This instance has no network beyond its own loopback.\n".to_owned(),
    };
    let files = [
        ("hosts", hosts.as_str()),
        ("hostname", "localhost\n"),
        ("resolv.conf", resolv.as_str()),
    ];
    for (name, text) in files {
        match rustix::fs::unlinkat(&etc, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // A directory of that name is the image's own affair.
            Err(_) => continue,
        }
        let file = rustix::fs::openat(
            &etc,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )?;
        give(&file, first_id)?;
        fs::File::from(file).write_all(text.as_bytes())?;
    }
    Ok(())
}

/// The directory `name` of the image's root, made when there is none. None: something else has the name.
fn directory_in(root: &OwnedFd, name: &str, first_id: u32) -> io::Result<Option<OwnedFd>> {
    let open = || {
        rustix::fs::openat2(
            root,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    };
    match open() {
        Ok(directory) => return Ok(Some(directory)),
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        // A link to nowhere.
        Err(Errno::EXIST) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let directory = open()?;
    give(&directory, first_id)?;
    Ok(Some(directory))
}

fn give(file: &OwnedFd, first_id: u32) -> io::Result<()> {
    rustix::fs::fchown(file, Some(Uid::from_raw(first_id)), Some(Gid::from_raw(first_id)))?;
    Ok(())
}
