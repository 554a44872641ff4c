//! The source of a build: which files of a directory belong to it, packed and brought into a bucket.
//!
//! As gcloud does: `.gcloudignore` in the directory says what stays behind; where there is none, `.gitignore` does, and
//! `.git` stays behind as well. `.dockerignore` is the builder's affair. A link is packed as a link, and one that leads
//! out of the directory is refused here, before anything is sent.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::{Error, Outside, progress};

const HOST: &str = "storage.googleapis.com";
/// Most bytes of all files together.
const MOST_BYTES: u64 = 2 << 30;
const INCLUDE: &str = "#!include:";

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::File {
        path: path.to_owned(),
        source,
    }
}

/// Google's client takes sources in buckets and in repositories of git too.
pub(crate) fn refuse_remote(source: &Path) -> Result<(), Error> {
    let text = source.to_string_lossy();
    let kind = match text.split_once("://") {
        None => return Ok(()),
        Some(("gs", _)) => "a source in a bucket",
        Some(_) => "a source at an address",
    };
    Err(Error::Usage(format!(
        "{text}: {kind} is not served by Homerun, give a directory"
    )))
}

/// What is to be packed, by paths below the directory, sorted; and how many bytes it has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chosen {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) bytes: u64,
}

impl Chosen {
    /// Looks through a directory.
    pub(crate) fn of(dir: &Path) -> Result<Self, Error> {
        if !fs::metadata(dir).map_err(failed(dir))?.is_dir() {
            return Err(Error::Failed(format!("{} is not a directory", dir.display())));
        }
        let left_out = left_out(dir)?;
        let mut chosen = Self {
            files: Vec::new(),
            bytes: 0,
        };
        let mut open = vec![PathBuf::new()];
        while let Some(below) = open.pop() {
            let at = dir.join(&below);
            for entry in fs::read_dir(&at).map_err(failed(&at))? {
                let entry = entry.map_err(failed(&at))?;
                let path = below.join(entry.file_name());
                let kind = entry.file_type().map_err(failed(&entry.path()))?;
                if left_out.matched(&path, kind.is_dir()).is_ignore() {
                    continue;
                }
                if kind.is_dir() {
                    open.push(path);
                } else if kind.is_symlink() {
                    stays_inside(dir, &path)?;
                    chosen.files.push(path);
                } else if kind.is_file() {
                    chosen.bytes += entry.metadata().map_err(failed(&entry.path()))?.len();
                    chosen.files.push(path);
                }
            }
        }
        if chosen.files.is_empty() {
            return Err(Error::Failed(format!("{} holds no file to build from", dir.display())));
        }
        if chosen.bytes > MOST_BYTES {
            return Err(Error::Failed(format!(
                "{} has {} bytes of files, the limit is {MOST_BYTES}: name what stays behind in .gcloudignore",
                dir.display(),
                chosen.bytes
            )));
        }
        chosen.files.sort_unstable();
        Ok(chosen)
    }
}

/// A link must not lead out of the source.
fn stays_inside(dir: &Path, link: &Path) -> Result<(), Error> {
    let place = dir.join(link);
    let target = fs::read_link(&place).map_err(failed(&place))?;
    let mut depth = link.components().count() - 1;
    for part in target.components() {
        let inside = match part {
            Component::CurDir => true,
            Component::Normal(_) => {
                depth += 1;
                true
            }
            Component::ParentDir => {
                let above = depth.checked_sub(1);
                depth = above.unwrap_or(0);
                above.is_some()
            }
            Component::RootDir | Component::Prefix(_) => false,
        };
        if !inside {
            return Err(Error::Failed(format!(
                "{} links to {}, which leads out of the source",
                place.display(),
                target.display()
            )));
        }
    }
    Ok(())
}

/// The rules of what stays behind.
fn left_out(dir: &Path) -> Result<Gitignore, Error> {
    let mut rules = GitignoreBuilder::new("");
    let own = dir.join(".gcloudignore");
    let mut add = |line: &str, of: &Path| {
        rules
            .add_line(None, line)
            .map(drop)
            .map_err(|why| Error::Failed(format!("{}: {why}", of.display())))
    };
    let lines = |path: &Path| -> Result<Option<String>, Error> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(path)(error)),
        }
    };
    if let Some(text) = lines(&own)? {
        for line in text.lines() {
            let Some(other) = line.strip_prefix(INCLUDE) else {
                add(line, &own)?;
                continue;
            };
            let other = dir.join(other.trim());
            for line in lines(&other)?.unwrap_or_default().lines() {
                add(line, &other)?;
            }
        }
    } else {
        let git = dir.join(".gitignore");
        for line in [".git", ".gitignore"] {
            add(line, &git)?;
        }
        for line in lines(&git)?.unwrap_or_default().lines() {
            add(line, &git)?;
        }
    }
    rules
        .build()
        .map_err(|why| Error::Failed(format!("{}: {why}", own.display())))
}

/// Packs the files of a directory into a temporary file, which is at its start again, and tells its length.
fn pack(dir: &Path, chosen: &Chosen) -> Result<(File, u64), Error> {
    let file = tempfile::tempfile().map_err(failed(Path::new("a temporary file")))?;
    let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    tar.follow_symlinks(false);
    for path in &chosen.files {
        let place = dir.join(path);
        tar.append_path_with_name(&place, path).map_err(failed(&place))?;
    }
    let finish = || -> io::Result<(File, u64)> {
        let mut file = tar.into_inner()?.finish()?;
        let length = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        Ok((file, length))
    };
    finish().map_err(failed(Path::new("a temporary file")))
}

/// Brings a directory into a bucket, made where it is missing. Answers the source as builds name it.
pub(crate) fn upload(
    outside: &mut Outside<'_>,
    server: &Server,
    dir: &Path,
    bucket: &str,
    name: &str,
) -> Result<Value, Error> {
    let chosen = Chosen::of(dir)?;
    outside.say(&format!(
        "Creating temporary archive of {} file(s) totalling {} bytes before compression.",
        chosen.files.len(),
        chosen.bytes
    ));
    let (mut archive, length) = pack(dir, &chosen)?;
    match server.get(outside, HOST, &format!("/storage/v1/b/{}", escape(bucket))) {
        Ok(_) => {}
        Err(error) if error.is_not_found() => {
            let path = format!("/storage/v1/b?project={}", escape(&server.project));
            let wanted = json!({ "name": bucket });
            server.json(outside, &Method::POST, HOST, &path, Content::Json(&wanted))?;
        }
        Err(error) => return Err(error),
    }
    outside.say(&format!(
        "Uploading {length} bytes of [{}] to [gs://{bucket}/{name}]",
        dir.display()
    ));
    let path = format!(
        "/upload/storage/v1/b/{}/o?uploadType=media&name={}",
        escape(bucket),
        escape(name)
    );
    let object = progress::of_bytes(outside, "Uploading sources:", length, &mut archive, |outside, from| {
        let content = Content::Stream {
            media_type: "application/gzip",
            length,
            from,
        };
        server.json(outside, &Method::POST, HOST, &path, content)
    })?;
    Ok(json!({ "bucket": bucket, "object": name, "generation": object["generation"] }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let place = dir.path().join(path);
            fs::create_dir_all(place.parent().expect("a parent")).expect("made");
            fs::write(place, text).expect("written");
        }
        dir
    }

    fn chosen(dir: &tempfile::TempDir) -> Vec<String> {
        let chosen = Chosen::of(dir.path()).expect("a source");
        chosen.files.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn what_stays_behind() {
        let files = [
            ("Dockerfile", ""),
            (".git/config", ""),
            ("a/x.log", ""),
            ("b/x.txt", "12"),
            ("node_modules/x", ""),
        ];
        assert_eq!(
            chosen(&tree(&files)),
            ["Dockerfile", "a/x.log", "b/x.txt", "node_modules/x"]
        );
        let with_git = [&files[..], &[(".gitignore", "*.log\nnode_modules/\n")]].concat();
        assert_eq!(chosen(&tree(&with_git)), ["Dockerfile", "b/x.txt"]);
        let own = [
            &with_git[..],
            &[
                (".gcloudignore", "# mine\n.g*\n#!include:.gitignore\n/b\n!keep.log\n"),
                ("a/keep.log", ""),
            ],
        ]
        .concat();
        assert_eq!(chosen(&tree(&own)), ["Dockerfile", "a/keep.log"]);
        assert_eq!(Chosen::of(tree(&files).path()).expect("a source").bytes, 2);
    }

    #[test]
    fn what_is_no_source_is_named() {
        let dir = tree(&[(".git/config", "")]);
        let said = Chosen::of(dir.path()).expect_err("empty").text();
        assert!(said.contains("no file to build from"), "{said}");
        let dir = tree(&[("Dockerfile", "")]);
        symlink("Dockerfile", dir.path().join("good")).expect("made");
        assert_eq!(chosen(&dir), ["Dockerfile", "good"]);
        symlink("../x", dir.path().join("bad")).expect("made");
        let said = Chosen::of(dir.path()).expect_err("leads out").text();
        assert!(said.contains("bad links to ../x"), "{said}");
        let said = Chosen::of(&dir.path().join("Dockerfile")).expect_err("a file").text();
        assert!(said.contains("not a directory"), "{said}");
    }

    #[test]
    fn sources_elsewhere_are_refused_by_name() {
        assert!(refuse_remote(Path::new("./a:/b")).is_ok());
        for (source, kind) in [
            ("gs://b/o.tgz", "a source in a bucket"),
            ("https://h/r.git", "a source at an address"),
        ] {
            let said = refuse_remote(Path::new(source)).expect_err("elsewhere").text();
            assert!(said.contains(source) && said.contains(kind), "{said}");
        }
    }

    #[test]
    fn an_archive_holds_links_as_links() {
        let dir = tree(&[("d/f", "text")]);
        symlink("d/f", dir.path().join("link")).expect("made");
        let chosen = Chosen::of(dir.path()).expect("a source");
        let (file, length) = pack(dir.path(), &chosen).expect("packed");
        assert!(length > 20);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
        let found: Vec<(String, bool)> = archive
            .entries()
            .expect("a tar")
            .map(|entry| {
                let entry = entry.expect("an entry");
                let path = entry.path().expect("a path").display().to_string();
                (path, entry.header().entry_type().is_symlink())
            })
            .collect();
        assert_eq!(found, [("d/f".to_owned(), false), ("link".to_owned(), true)]);
    }
}
