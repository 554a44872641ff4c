//! The Dockerfile of a source that has none: its tree is looked at, and what [`detect`] makes of it is written down
//! beside the source, which stays as it is.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::Path,
};

use crate::detect::{self, Bases, Plan, Refusal, Tree};

/// Largest file that is read to find out what a source is, in bytes: 1 MiB.
pub const MAX_MARKER: u64 = 1 << 20;
/// What the files are called that are written.
pub(crate) const DOCKERFILE: &str = "Dockerfile";
pub(crate) const IGNORE: &str = "dockerignore";
/// Never of interest, and large.
const PASSED: [&str; 2] = [".git", "node_modules"];

/// A Dockerfile that was written for a source.
#[derive(Debug)]
pub(crate) struct Generated {
    pub(crate) plan: Plan,
    /// The source says itself what stays out of the image.
    pub(crate) ignores_itself: bool,
}

/// Why none was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GenerateError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("{file} is a link, and tells how to build the source: put the file itself there, or add a Dockerfile")]
    Link { file: String },
    #[error("{file} tells how to build the source, and has {size} bytes; the limit is {MAX_MARKER}")]
    Large { file: String, size: u64 },
    #[error("{file} tells how to build the source, and is not UTF-8")]
    Text { file: String },
    #[error("cannot look at the source")]
    Disk(#[from] io::Error),
}

/// Writes the Dockerfile of the source at `source` into the directory `to`. Blocks on the disk.
pub(crate) fn generate(source: &Path, bases: &Bases, to: &Path) -> Result<Generated, GenerateError> {
    let mut tree = Tree::default();
    look(source, "", 1, &mut tree)?;
    let plan = detect::plan(&tree, bases)?;
    fs::write(to.join(DOCKERFILE), &plan.dockerfile)?;
    fs::write(to.join(IGNORE), &plan.ignore)?;
    let ignores_itself = [".dockerignore", ".containerignore"]
        .iter()
        .any(|name| fs::symlink_metadata(source.join(name)).is_ok());
    Ok(Generated { plan, ignores_itself })
}

/// Adds what is below a directory, without following links.
fn look(root: &Path, below: &str, level: usize, tree: &mut Tree) -> Result<(), GenerateError> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        // What no file of interest is called.
        let Some(last) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        let name = if below.is_empty() {
            last.clone()
        } else {
            format!("{below}/{last}")
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if level < Tree::DEPTH && !PASSED.contains(&last.as_str()) {
                look(root, &name, level + 1, tree)?;
            }
        } else if !Tree::wants(&name) {
            tree.add(name);
        } else if kind.is_file() {
            let text = text(&entry.path(), &name)?;
            tree.add_text(&name, text);
        } else {
            return Err(GenerateError::Link { file: name });
        }
    }
    Ok(())
}

fn text(path: &Path, name: &str) -> Result<String, GenerateError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > MAX_MARKER {
        return Err(GenerateError::Large {
            file: name.to_owned(),
            size,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_MARKER).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| GenerateError::Text { file: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn source(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            let place = dir.path().join("source").join(name);
            fs::create_dir_all(place.parent().expect("a parent")).expect("made");
            fs::write(place, content).expect("written");
        }
        fs::create_dir_all(dir.path().join("to")).expect("made");
        dir
    }

    fn generated(dir: &tempfile::TempDir) -> Result<Generated, GenerateError> {
        generate(&dir.path().join("source"), &Bases::default(), &dir.path().join("to"))
    }

    #[test]
    fn a_site_gets_a_dockerfile_beside_it() {
        let dir = source(&[("index.html", b"x"), ("node_modules/a/package.json", b"{}")]);
        let made = generated(&dir).expect("a plan");
        assert!(!made.ignores_itself);
        let written = fs::read_to_string(dir.path().join("to/Dockerfile")).expect("written");
        assert_eq!(written, made.plan.dockerfile);
        assert!(!dir.path().join("source/Dockerfile").exists());
        let dir = source(&[("index.html", b"x"), (".dockerignore", b"")]);
        assert!(generated(&dir).expect("a plan").ignores_itself);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = source(&[("other.txt", b"x")]);
        symlink("other.txt", dir.path().join("source/requirements.txt")).expect("made");
        let said = generated(&dir).expect_err("a link").to_string();
        assert!(said.starts_with("requirements.txt is a link"), "{said}");
        for (content, told) in [
            (&vec![b'#'; 1 + (1 << 20)], "has 1048577 bytes; the limit is 1048576"),
            (&vec![0xff], "is not UTF-8"),
        ] {
            let dir = source(&[("requirements.txt", content)]);
            let said = generated(&dir).expect_err("unreadable").to_string();
            assert!(said.contains("requirements.txt") && said.contains(told), "{said}");
        }
    }
}
