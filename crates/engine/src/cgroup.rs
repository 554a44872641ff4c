//! The control groups of instances: where they are on this machine, what their files say, and what is written to them.
//!
//! All groups of one Homerun are below one parent named `homerun-<id8>` in every hierarchy, so that what a dead one left
//! can be found by name. Two layouts are known. [`Layout::V1`]: one hierarchy per controller, perhaps with an empty
//! version 2 tree beside them, whose freezer is used because it stops and starts a group 20 times faster than version
//! 1's. [`Layout::V2`]: the one tree of version 2. The groups of an instance are made, filled and limited by the
//! container runtime, or by ourselves for one that is told to leave them alone (`own`); the group in the empty version
//! 2 tree is always ours.

mod own;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
};

/// Length of one period of the CPU limit.
pub(crate) const PERIOD_MICROS: u64 = 100_000;

/// Where this machine keeps its control groups.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Layout {
    V1 {
        /// Mount point of each hierarchy by each of its controllers (`name=systemd` too).
        hierarchies: BTreeMap<String, PathBuf>,
        /// Mount point of the version 2 tree that has no controller of ours.
        unified: Option<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

impl Layout {
    /// Reads the layout from the text of `/proc/self/mountinfo`. None: no control groups are mounted, or only parts of
    /// a hierarchy are.
    pub(crate) fn parse(mountinfo: &str) -> Option<Self> {
        let mut hierarchies = BTreeMap::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((mount, file_system)) = line.split_once(" - ") else {
                continue;
            };
            let mut mount = mount.split(' ').skip(3);
            let (Some(root), Some(point)) = (mount.next(), mount.next()) else {
                continue;
            };
            let mut file_system = file_system.split(' ');
            let kind = file_system.next().unwrap_or_default();
            if root != "/" {
                continue;
            }
            match kind {
                "cgroup2" => unified = Some(PathBuf::from(point)),
                "cgroup" => {
                    let options = file_system.nth(1).unwrap_or_default();
                    for option in options.split(',').filter(|o| !matches!(*o, "rw" | "ro" | "")) {
                        hierarchies.insert(option.to_owned(), PathBuf::from(point));
                    }
                }
                _ => {}
            }
        }
        if hierarchies.contains_key("memory") {
            Some(Self::V1 { hierarchies, unified })
        } else {
            unified.map(|root| Self::V2 { root })
        }
    }

    /// The layout of this machine.
    pub(crate) fn here() -> io::Result<Option<Self>> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// Every mount point, each once.
    pub(crate) fn roots(&self) -> Vec<&Path> {
        let mut roots: Vec<&Path> = match self {
            Self::V1 { hierarchies, unified } => hierarchies
                .values()
                .map(PathBuf::as_path)
                .chain(unified.as_deref())
                .collect(),
            Self::V2 { root } => vec![root],
        };
        roots.sort_unstable();
        roots.dedup();
        roots
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::V1 { hierarchies, .. } => hierarchies.get(name).map(PathBuf::as_path),
            Self::V2 { root } => Some(root),
        }
    }

    /// The hierarchy in which all our processes are placed before the runtime sees them.
    pub(crate) fn home(&self) -> Option<&Path> {
        match self {
            Self::V1 { hierarchies, unified } => unified
                .as_deref()
                .or_else(|| hierarchies.get("pids").map(PathBuf::as_path)),
            Self::V2 { root } => Some(root),
        }
    }

    /// Whether the runtime can limit swap; if not it must not be asked to.
    pub(crate) fn limits_swap(&self) -> bool {
        match self {
            Self::V1 { hierarchies, .. } => hierarchies
                .get("memory")
                .is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists()),
            Self::V2 { .. } => Path::new("/proc/swaps").exists(),
        }
    }
}

/// The parent of all groups of one Homerun.
pub(crate) fn parent_name(id8: &str) -> String {
    format!("homerun-{id8}")
}

/// `cpu.cfs_quota_us`, or the first number of `cpu.max`, for so many thousandths of a CPU.
pub(crate) fn quota_micros(cpu_millis: u32) -> u64 {
    // 1000 is the smallest quota that the kernel takes.
    (u64::from(cpu_millis) * PERIOD_MICROS / 1000).max(1000)
}

/// The groups of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Groups {
    layout: Layout,
    /// `homerun-<id8>/<instance>`, below each mount point.
    path: PathBuf,
}

impl Groups {
    pub(crate) fn new(layout: &Layout, id8: &str, name: &str) -> Self {
        Self {
            layout: layout.clone(),
            path: Path::new(&parent_name(id8)).join(name),
        }
    }

    /// The group of one container of an instance that has several; below the instance's.
    pub(crate) fn container(&self, index: usize) -> Self {
        Self {
            layout: self.layout.clone(),
            path: self.path.join(format!("c{index}")),
        }
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Those at a path below each hierarchy.
    pub(crate) fn at(layout: &Layout, path: &Path) -> Self {
        Self {
            layout: layout.clone(),
            path: path.to_owned(),
        }
    }

    /// A file of the instance's group in the hierarchy of `controller`.
    pub(crate) fn file(&self, controller: &str, name: &str) -> io::Result<PathBuf> {
        let root = self
            .layout
            .controller(controller)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {controller} controller")))?;
        Ok(root.join(&self.path).join(name))
    }

    /// Makes a group of our own in the hierarchy where all our processes are, and moves the calling one into it.
    pub(crate) fn enter_home(&self) -> io::Result<()> {
        let Some(home) = self.layout.home() else {
            return Ok(());
        };
        let group = home.join(&self.path);
        fs::create_dir_all(&group)?;
        fs::write(group.join("cgroup.procs"), "0")
    }

    /// Makes the group that the runtime does not know of, where the layout has one: what starts the runtime is born
    /// there, and so is all that the runtime starts.
    pub(crate) fn make_unified(&self) -> io::Result<Option<OwnedFd>> {
        match &self.layout {
            Layout::V1 {
                unified: Some(root), ..
            } => {
                let group = root.join(&self.path);
                fs::create_dir_all(&group)?;
                Ok(Some(File::open(group)?.into()))
            }
            Layout::V1 { unified: None, .. } | Layout::V2 { .. } => Ok(None),
        }
    }

    /// Makes the group that our own sandbox's maker is to be born in: with version 2 the only one, with its limits.
    pub(crate) fn make_first(&self, limits: &[(String, String, String)]) -> io::Result<Option<OwnedFd>> {
        let Layout::V2 { root } = &self.layout else {
            return self.make_unified();
        };
        let group = root.join(&self.path);
        if fs::create_dir(&group).is_err() {
            // Above a group that limits there must be none but groups that let it.
            let mut above: Vec<&Path> = self.path.ancestors().skip(1).collect();
            above.reverse();
            for parent in above {
                let parent = root.join(parent);
                fs::create_dir_all(&parent)?;
                fs::write(parent.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
            }
            fs::create_dir_all(&group)?;
        }
        self.limit(limits)?;
        Ok(Some(File::open(group)?.into()))
    }

    /// Makes the group of each hierarchy of version 1 and moves the calling process, which must have one thread, into
    /// it. One thread that moves itself waits for nobody; a process that is moved, or that moves itself as a process,
    /// waits until every CPU has noticed: 7 to 15 ms on an idle machine.
    pub(crate) fn enter(&self, limits: &[(String, String, String)]) -> io::Result<()> {
        let Layout::V1 { hierarchies, .. } = &self.layout else {
            return Ok(());
        };
        let mut roots: Vec<&PathBuf> = hierarchies.values().collect();
        roots.sort_unstable();
        roots.dedup();
        if let Some(root) = hierarchies.get("cpuset") {
            inherit_cpus(root, &self.path)?;
        }
        for root in &roots {
            fs::create_dir_all(root.join(&self.path))?;
        }
        self.limit(limits)?;
        for root in roots {
            fs::write(root.join(&self.path).join("tasks"), "0")?;
        }
        Ok(())
    }

    fn limit(&self, limits: &[(String, String, String)]) -> io::Result<()> {
        for (controller, name, text) in limits {
            let file = self.file(controller, name)?;
            fs::write(&file, text).map_err(|error| {
                io::Error::new(error.kind(), format!("writing {text} to {}: {error}", file.display()))
            })?;
        }
        Ok(())
    }

    /// Sets the CPU limit, or lifts it.
    pub(crate) fn set_cpu(&self, cpu_millis: Option<u32>) -> io::Result<()> {
        match &self.layout {
            Layout::V1 { .. } => {
                let quota = cpu_millis.map_or("-1".to_owned(), |m| quota_micros(m).to_string());
                fs::write(self.file("cpu", "cpu.cfs_quota_us")?, quota)
            }
            Layout::V2 { .. } => {
                let quota = cpu_millis.map_or("max".to_owned(), |m| quota_micros(m).to_string());
                fs::write(self.file("cpu", "cpu.max")?, format!("{quota} {PERIOD_MICROS}"))
            }
        }
    }

    /// The group by which the instance is frozen.
    pub(crate) fn freezing(&self) -> io::Result<PathBuf> {
        match &self.layout {
            Layout::V1 {
                unified: Some(root), ..
            }
            | Layout::V2 { root } => Ok(root.join(&self.path)),
            Layout::V1 { unified: None, .. } => self.file("freezer", ""),
        }
    }

    pub(crate) fn freezer(&self) -> io::Result<Freezer> {
        let (name, words) = match &self.layout {
            Layout::V1 { unified: Some(_), .. } | Layout::V2 { .. } => ("cgroup.freeze", ["0", "1"]),
            Layout::V1 { unified: None, .. } => ("freezer.state", ["THAWED", "FROZEN"]),
        };
        let path = self.freezing()?.join(name);
        Ok(Freezer {
            file: OpenOptions::new().write(true).open(path)?,
            words,
        })
    }

    pub(crate) fn memory_kills(&self) -> io::Result<MemoryKills> {
        let name = match &self.layout {
            Layout::V1 { .. } => "memory.oom_control",
            Layout::V2 { .. } => "memory.events",
        };
        Ok(MemoryKills {
            file: File::open(self.file("memory", name)?)?,
        })
    }

    /// The most memory that was ever used, bytes.
    pub(crate) fn memory_peak(&self) -> io::Result<u64> {
        let name = match &self.layout {
            Layout::V1 { .. } => "memory.max_usage_in_bytes",
            Layout::V2 { .. } => "memory.peak",
        };
        let text = fs::read_to_string(self.file("memory", name)?)?;
        text.trim()
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a number"))
    }

    /// A file that becomes readable (version 1) whenever the instance meets its memory limit.
    pub(crate) fn memory_alarm(&self, kills: &MemoryKills) -> io::Result<Alarm> {
        use std::os::fd::AsRawFd as _;
        match &self.layout {
            Layout::V1 { .. } => {
                let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
                let event = rustix::event::eventfd(0, flags)?;
                fs::write(
                    self.file("memory", "cgroup.event_control")?,
                    format!("{} {}", event.as_raw_fd(), kills.file.as_raw_fd()),
                )?;
                Ok(Alarm(event))
            }
            Layout::V2 { .. } => {
                use rustix::fs::inotify;
                let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
                let event = inotify::init(flags)?;
                inotify::add_watch(
                    &event,
                    self.file("memory", "memory.events")?,
                    inotify::WatchFlags::MODIFY,
                )?;
                Ok(Alarm(event))
            }
        }
    }

    /// Removes its groups if no process is in them and no other below, without looking first. False: some are left.
    pub(crate) fn remove_empty(&self) -> bool {
        let roots = self.layout.roots().into_iter();
        let left = roots.filter(|root| match fs::remove_dir(root.join(&self.path)) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
        left.count() == 0
    }

    /// Ends every process of the instance and removes its groups.
    pub(crate) fn clear(&self) -> io::Result<()> {
        clear(&self.layout, &self.path)
    }
}

/// Makes a group of version 1's cpuset. A new one has no CPUs, and takes no process until it has; those below ours have
/// their parent's from their first moment on, since each write there has the kernel look at all their siblings.
fn inherit_cpus(root: &Path, path: &Path) -> io::Result<()> {
    const FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
    let missing = |group: &Path, name: &str| -> io::Result<bool> {
        Ok(fs::read_to_string(root.join(group).join(name))?.trim().is_empty())
    };
    // As a rule there are all above it, and it is complete when it is made.
    if fs::create_dir(root.join(path)).is_ok() && !missing(path, FILES[0])? && !missing(path, FILES[1])? {
        return Ok(());
    }
    fs::create_dir_all(root.join(path))?;
    let mut above: Vec<&Path> = path.ancestors().collect();
    above.reverse();
    for (parent, group) in above.iter().zip(&above[1..]) {
        for name in FILES {
            if missing(group, name)? {
                fs::write(
                    root.join(group).join(name),
                    fs::read_to_string(root.join(parent).join(name))?,
                )?;
            }
        }
        if *group != path {
            fs::write(root.join(group).join("cgroup.clone_children"), "1")?;
        }
    }
    Ok(())
}

/// Readable when memory ran out; see [`Groups::memory_alarm`].
#[derive(Debug)]
pub(crate) struct Alarm(pub(crate) OwnedFd);

/// Stops and continues all processes of an instance.
#[derive(Debug)]
pub(crate) struct Freezer {
    file: File,
    words: [&'static str; 2],
}

impl Freezer {
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let word = self.words[usize::from(frozen)];
        self.file.write_all_at(word.as_bytes(), 0)
    }
}

/// How many processes of an instance the kernel killed because of its memory limit.
#[derive(Debug)]
pub(crate) struct MemoryKills {
    file: File,
}

impl MemoryKills {
    /// Read from an open file, so that it works until the last moment of the group.
    pub(crate) fn count(&self) -> u64 {
        let mut buffer = [0; 512];
        let length = self.file.read_at(&mut buffer, 0).unwrap_or(0);
        count_kills(&String::from_utf8_lossy(&buffer[..length]))
    }
}

fn count_kills(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .find_map(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Kills all processes below `path` in every hierarchy but the calling one, waits until they are gone, and removes the
/// groups. Nothing there is success.
pub(crate) fn clear(layout: &Layout, path: &Path) -> io::Result<()> {
    let own = std::process::id();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let trees: Vec<PathBuf> = layout.roots().iter().map(|root| root.join(path)).collect();
    loop {
        let mut alive = 0;
        for tree in &trees {
            for group in groups_below(tree) {
                alive += kill_all(&group, own);
            }
        }
        let left: Vec<&PathBuf> = trees.iter().filter(|tree| !remove_tree(tree)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if std::time::Instant::now() > deadline {
            let left = left[0].display();
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{left} still has {alive} processes"),
            ));
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The groups below and including `tree`, deepest first.
pub(crate) fn groups_below(tree: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(group) = open.pop() {
        let Ok(entries) = fs::read_dir(&group) else {
            continue;
        };
        let below = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        open.extend(below.map(|e| e.path()));
        found.push(group);
    }
    found.reverse();
    found
}

fn kill_all(group: &Path, own: u32) -> usize {
    let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let pids: Vec<u32> = procs
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid != own && *pid != 0)
        .collect();
    for pid in &pids {
        let pid = i32::try_from(*pid).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // Gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    // A process that version 1's freezer holds dies only once it is thawed.
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if !pids.is_empty()
            && let Ok(mut file) = OpenOptions::new().write(true).open(group.join(file))
        {
            let _ = file.write_all(word.as_bytes());
        }
    }
    pids.len()
}

/// Whether nothing is left of it.
fn remove_tree(tree: &Path) -> bool {
    for group in groups_below(tree) {
        let _ = fs::remove_dir(group);
    }
    !tree.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:22 / /sys rw,relatime - sysfs sysfs rw
30 24 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
31 24 0:30 / /sys/fs/cgroup/memory rw,relatime shared:3 - cgroup cgroup rw,memory
32 24 0:31 / /sys/fs/cgroup/pids,freezer rw,relatime - cgroup cgroup rw,pids,freezer
33 24 0:32 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const ONE_TREE: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn groups(layout: &Layout) -> Groups {
        Groups::new(layout, "0123abcd", "iab")
    }

    #[test]
    fn layouts() {
        let hybrid = Layout::parse(HYBRID).expect("mounted");
        assert_eq!(hybrid.roots().len(), 4);
        assert_eq!(hybrid.controller("freezer"), hybrid.controller("pids"));
        assert_eq!(hybrid.home(), Some(Path::new("/sys/fs/cgroup/unified")));
        let without = HYBRID.lines().filter(|line| !line.contains("cgroup2"));
        let without = Layout::parse(&without.collect::<Vec<_>>().join("\n")).expect("mounted");
        assert_eq!(without.home(), Some(Path::new("/sys/fs/cgroup/pids,freezer")));
        let root = PathBuf::from("/sys/fs/cgroup");
        assert_eq!(Layout::parse(ONE_TREE), Some(Layout::V2 { root }));
        assert_eq!(Layout::parse("24 1 0:22 / /sys rw - sysfs sysfs rw\n"), None);
        // A part of a tree, as seen in a container, is not enough.
        assert_eq!(Layout::parse(&ONE_TREE.replace(" / ", " /docker/1 ")), None);
    }

    #[test]
    fn the_files_of_version_2() {
        let root = tempfile::tempdir().expect("a directory");
        let layout = Layout::V2 {
            root: root.path().to_owned(),
        };
        let groups = groups(&layout);
        let group = root.path().join("homerun-0123abcd/iab");
        fs::create_dir_all(&group).expect("made");
        let file = |name: &str| fs::read_to_string(group.join(name)).expect(name);
        fs::write(group.join("cgroup.freeze"), "0").expect("written");
        fs::write(
            group.join("memory.events"),
            "low 0\nmax 5\noom 1\noom_kill 2\noom_group_kill 1\n",
        )
        .expect("written");
        fs::write(group.join("memory.peak"), "4096\n").expect("written");

        groups.set_cpu(Some(250)).expect("written");
        assert_eq!(file("cpu.max"), "25000 100000");
        groups.set_cpu(None).expect("written");
        assert_eq!(file("cpu.max"), "max 100000");
        let freezer = groups.freezer().expect("opened");
        freezer.freeze(true).expect("written");
        assert_eq!(file("cgroup.freeze"), "1");
        freezer.freeze(false).expect("written");
        assert_eq!(file("cgroup.freeze"), "0");
        let kills = groups.memory_kills().expect("opened");
        assert_eq!(kills.count(), 2);
        assert_eq!(groups.memory_peak().expect("read"), 4096);
        groups.memory_alarm(&kills).expect("watched");
    }

    #[test]
    fn version_1_alone_has_its_own_freezer() {
        let root = tempfile::tempdir().expect("a directory");
        let group = root.path().join("homerun-0123abcd/iab");
        fs::create_dir_all(&group).expect("made");
        fs::write(group.join("freezer.state"), "").expect("written");
        let layout = Layout::V1 {
            hierarchies: BTreeMap::from([("freezer".to_owned(), root.path().to_owned())]),
            unified: None,
        };
        let freezer = groups(&layout).freezer().expect("opened");
        freezer.freeze(true).expect("written");
        assert_eq!(fs::read_to_string(group.join("freezer.state")).expect("read"), "FROZEN");
    }

    #[test]
    fn counters_and_quotas() {
        assert_eq!(count_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(count_kills(""), 0);
        assert_eq!(
            [quota_micros(1), quota_micros(80), quota_micros(2000)],
            [1000, 8000, 200_000]
        );
    }
}
