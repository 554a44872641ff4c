//! What a builder's root is made of: buildah, the libraries that it is linked to, and its configuration. Nothing else of
//! the machine, so that whoever breaks out of a build step finds a program and no files.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};

use crate::index::Kind;

/// Where things are in a builder.
pub(crate) const PROGRAM: &str = "/usr/bin/buildah";
pub(crate) const CONTEXT: &str = "/build/context";
/// The Dockerfile of a source that has none.
pub(crate) const RECIPE: &str = "/build/recipe";
pub(crate) const OUT: &str = "/build/out";
pub(crate) const TEMPORARY: &str = "/build/tmp";
pub(crate) const STORAGE: &str = "/build/storage";
/// Where buildah keeps what belongs to a container of one step, below its storage on both sides. A secret that the step
/// mounts lies there as a file, so that it is in memory.
pub(crate) const CONTAINERS_OF_STEPS: &str = "overlay-containers";
pub(crate) const RUN: &str = "/run/containers";
/// Where the relay listens in a builder.
pub(crate) const PORT: u16 = 3128;

/// Of whatever registry: what it may be is decided by who answers.
const POLICY: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}
"#;

/// A name without a registry is docker's, and is asked nobody about.
const REGISTRIES: &str = r#"unqualified-search-registries = ["docker.io"]
short-name-mode = "disabled"
"#;

/// What root in a build step may do. Not to change its root: it could leave it for the builder's.
const CONTAINERS: &str = r#"[containers]
default_capabilities = [
  "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID",
]
"#;

const DIRECTORIES: [&str; 13] = [
    "build",
    "dev",
    "etc/containers",
    "etc/homerun",
    "lib",
    "lib64",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr/bin",
    "var/tmp",
];

/// Builds that begin together make one root, one after the other.
static MAKING: Mutex<()> = Mutex::new(());

/// Makes the root below `dir`, unless one of this very program is there. Blocks on the disk.
///
/// # Errors
/// What cannot be read or written.
pub(crate) fn prepare(dir: &Path, program: &Path) -> io::Result<PathBuf> {
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let program = program.canonicalize()?;
    let found = fs::metadata(&program)?;
    let indexes = Kind::ALL.map(|kind| (configuration_of(kind), kind.configuration(PORT)));
    // Another program, another root.
    let mark = format!(
        "{} {} {} {} {POLICY}{REGISTRIES}{CONTAINERS}{indexes:?}",
        program.display(),
        found.len(),
        found.mtime(),
        found.ino()
    );
    let root = dir.join(format!("root-{}", short_hash(&mark)));
    if root.is_dir() {
        return Ok(root);
    }
    let libraries = engine::libraries_of(&program)?;
    let making = dir.join("root-new");
    match fs::remove_dir_all(&making) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for directory in DIRECTORIES {
        fs::create_dir_all(making.join(directory))?;
    }
    let place = |path: &Path| making.join(path.strip_prefix("/").unwrap_or(path));
    fs::copy(&program, place(Path::new(PROGRAM)))?;
    for library in &libraries {
        let to = place(library);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(library, to)?;
    }
    for (path, text) in [
        ("etc/containers/policy.json", POLICY),
        ("etc/containers/registries.conf", REGISTRIES),
        ("etc/containers/containers.conf", CONTAINERS),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/false\n"),
        ("etc/group", "root:x:0:\n"),
    ] {
        fs::write(making.join(path), text)?;
    }
    for (path, text) in &indexes {
        fs::write(place(Path::new(path)), text)?;
    }
    // Those of other programs are of no use any more.
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("root-") && name != "root-new" {
            // One that is in use goes with the next program.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    fs::rename(&making, &root)?;
    Ok(root)
}

/// Where in a builder that lies what steps read of an index of this kind.
pub(crate) fn configuration_of(kind: Kind) -> String {
    format!("/etc/homerun/{kind}")
}

/// 16 hex digits that tell one text from another.
pub(crate) fn short_hash(text: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(16);
    for byte in &Sha256::digest(text.as_bytes())[..8] {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_that_begin_together_have_one_root() {
        let dir = tempfile::tempdir().expect("a directory");
        let roots: Vec<PathBuf> = std::thread::scope(|scope| {
            let make = || prepare(dir.path(), Path::new("/bin/sh")).expect("made");
            let all: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            all.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
        assert!(roots[0].join("usr/bin/buildah").is_file());
        assert!(roots[0].join("etc/containers/policy.json").is_file());
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1, "nothing half made");
    }
}
