//! `images import`: an OCI image layout, as a directory or a tar of one, or an archive of `docker save`, pushed to the
//! registry of a Homerun.
//!
//! The layout is read, never unpacked: blobs are sent from where they lie, those that the registry has already are not
//! sent. The registry checks every digest; nothing here needs to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::docker_archive::{self, Members};
use crate::error::Refusal;
use crate::words::{Global, Import};
use crate::{Error, Outside, progress};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// More than a manifest may hold.
const LONGEST_MANIFEST: u64 = 4 << 20;
/// Manifests of manifests of ...: nobody nests deeper.
const DEEPEST: usize = 4;

/// A full image name: registry, repository and tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    host: String,
    repository: String,
    reference: String,
}

impl Name {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "[{text}] is no full image name such as \
                 us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1"
            )
        };
        let (host, rest) = text.split_once('/').ok_or_else(wrong)?;
        if !(host.contains(['.', ':']) || host == "localhost") {
            return Err(wrong());
        }
        let (repository, reference) = match rest.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            Some(_) | None => (rest, "latest"),
        };
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let parts_hold = repository
            .split('/')
            .all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(is_plain));
        let is_tag_char = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !parts_hold || reference.is_empty() || !reference.chars().all(is_tag_char) {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            repository: repository.to_owned(),
            reference: reference.to_owned(),
        })
    }
}

/// Where the files of a layout lie.
#[derive(Debug)]
enum Layout {
    Directory(PathBuf),
    /// A tar: offset and length by name.
    Archive {
        path: PathBuf,
        members: BTreeMap<String, (u64, u64)>,
        /// Of an archive of docker's: the image that is meant, and the manifest made for it.
        docker: Option<Made>,
    },
}

/// What an archive of docker's lacks.
#[derive(Debug)]
struct Made {
    descriptor: Value,
    /// Its place and its text.
    manifest: (String, String),
}

impl Layout {
    /// `tag` tells which image is meant where docker saved several.
    fn open(path: &Path, tag: &str) -> Result<Self, Error> {
        let failed = |source| Error::File {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(failed)?;
        let mut start = [0_u8; 2];
        if file.read_exact(&mut start).is_ok() && start == [0x1f, 0x8b] {
            return Err(Error::Failed(format!(
                "{} is compressed: gunzip it first",
                path.display()
            )));
        }
        file.rewind().map_err(failed)?;
        let mut archive = tar::Archive::new(file);
        let (mut files, mut links) = (BTreeMap::new(), BTreeMap::new());
        for entry in archive.entries_with_seek().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.path().map_err(failed)?.display().to_string();
            let name = name.trim_start_matches("./").to_owned();
            if entry.header().entry_type().is_file() {
                files.insert(name, (entry.raw_file_position(), entry.size()));
            } else if let Some(target) = entry.link_name().map_err(failed)? {
                links.insert(name, target.display().to_string());
            }
        }
        let is_docker = files.contains_key("manifest.json") && !files.contains_key("index.json");
        let mut layout = Self::Archive {
            path: path.to_owned(),
            members: files.clone(),
            docker: None,
        };
        if is_docker {
            let wrong = |why: String| Error::Failed(format!("{}: {why}", path.display()));
            let chosen = docker_archive::choose(&layout.text("manifest.json")?, tag).map_err(wrong)?;
            let config = layout.text(chosen.config())?;
            let image = chosen.image(&config, &Members { files, links }).map_err(wrong)?;
            layout = Self::Archive {
                path: path.to_owned(),
                members: image
                    .blobs
                    .into_iter()
                    .map(|(digest, place)| Ok((blob(&digest)?, place)))
                    .collect::<Result<_, Error>>()?,
                docker: Some(Made {
                    manifest: (
                        blob(image.descriptor["digest"].as_str().unwrap_or_default())?,
                        image.manifest,
                    ),
                    descriptor: image.descriptor,
                }),
            };
        }
        Ok(layout)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Archive { path, .. } => path,
        }
    }

    /// A file of the layout with its length.
    fn file(&self, name: &str) -> Result<(Box<dyn Read>, u64), Error> {
        let failed = |source| Error::File {
            path: self.path().join(name),
            source,
        };
        match self {
            Self::Directory(path) => {
                let file = File::open(path.join(name)).map_err(failed)?;
                let length = file.metadata().map_err(failed)?.len();
                Ok((Box::new(file), length))
            }
            Self::Archive { docker: Some(made), .. } if made.manifest.0 == name => {
                let text = made.manifest.1.clone().into_bytes();
                let length = text.len() as u64;
                Ok((Box::new(io::Cursor::new(text)), length))
            }
            Self::Archive { path, members, .. } => {
                let (offset, length) = members
                    .get(name)
                    .copied()
                    .ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
                let mut file = File::open(path).map_err(failed)?;
                file.seek(SeekFrom::Start(offset)).map_err(failed)?;
                Ok((Box::new(file.take(length)), length))
            }
        }
    }

    /// A small file of the layout as it is.
    fn text(&self, name: &str) -> Result<String, Error> {
        let (file, length) = self.file(name)?;
        if length > LONGEST_MANIFEST {
            return Err(Error::Failed(format!(
                "{name} has {length} bytes, more than the {LONGEST_MANIFEST} of a manifest"
            )));
        }
        let mut text = String::new();
        file.take(LONGEST_MANIFEST)
            .read_to_string(&mut text)
            .map_err(|source| Error::File {
                path: self.path().join(name),
                source,
            })?;
        Ok(text)
    }

    fn json(&self, name: &str) -> Result<Value, Error> {
        serde_json::from_str(&self.text(name)?)
            .map_err(|why| Error::Failed(format!("{}: {name} is no JSON: {why}", self.path().display())))
    }

    /// The descriptor of the image that is meant: the only one, or the one named as the tag.
    fn image(&self, tag: &str) -> Result<Value, Error> {
        if let Self::Archive { docker: Some(made), .. } = self {
            return Ok(made.descriptor.clone());
        }
        let index = self.json("index.json").map_err(|error| {
            if matches!(&error, Error::File { source, .. } if source.kind() == io::ErrorKind::NotFound) {
                Error::Failed(format!(
                    "{} is neither an OCI image layout nor an archive of `docker save`: it has no index.json and no \
                     manifest.json",
                    self.path().display()
                ))
            } else {
                error
            }
        })?;
        let images = index["manifests"].as_array().cloned().unwrap_or_default();
        let name = |image: &Value| {
            image["annotations"][REF_NAME]
                .as_str()
                .unwrap_or("(no name)")
                .to_owned()
        };
        match images.as_slice() {
            [] => Err(Error::Failed(format!("{} holds no image", self.path().display()))),
            [one] => Ok(one.clone()),
            several => several.iter().find(|image| name(image) == tag).cloned().ok_or_else(|| {
                let names: Vec<String> = several.iter().map(name).collect();
                Error::Failed(format!(
                    "{} holds several images and none is named {tag}: {}",
                    self.path().display(),
                    names.join(", ")
                ))
            }),
        }
    }
}

/// The place of a blob in a layout; a digest that is no digest has none.
fn blob(digest: &str) -> Result<String, Error> {
    let (algorithm, hex) = digest.split_once(':').unwrap_or(("", ""));
    let length = match algorithm {
        "sha256" => 64,
        "sha512" => 128,
        _ => 0,
    };
    if length == 0 || hex.len() != length || !hex.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Error::Failed(format!("[{digest}] is no digest")));
    }
    Ok(format!("blobs/{algorithm}/{hex}"))
}

pub(crate) fn run(outside: &mut Outside<'_>, global: &Global, import: &Import) -> Result<(), Error> {
    let name = Name::parse(&import.image).map_err(Error::Usage)?;
    let layout = Layout::open(&import.layout, &name.reference)?;
    let image = layout.image(&name.reference)?;
    let server = Server::find(outside, global)?;
    let push = Push {
        server: &server,
        layout: &layout,
        name: &name,
    };
    push.manifest(outside, &image, Some(&name.reference), DEEPEST)?;
    let digest = image["digest"].as_str().unwrap_or_default();
    outside.say(&format!("Imported {}", import.image));
    outside.print(&format!("{}/{}@{digest}", name.host, name.repository))
}

struct Push<'a> {
    server: &'a Server,
    layout: &'a Layout,
    name: &'a Name,
}

impl Push<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.name.repository)
    }

    /// Sends what a manifest names, then the manifest.
    fn manifest(
        &self,
        outside: &mut Outside<'_>,
        descriptor: &Value,
        reference: Option<&str>,
        deeper: usize,
    ) -> Result<(), Error> {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let text = self.layout.text(&blob(digest)?)?;
        let manifest: Value =
            serde_json::from_str(&text).map_err(|why| Error::Failed(format!("manifest {digest} is no JSON: {why}")))?;
        if let Some(manifests) = manifest["manifests"].as_array() {
            let deeper = deeper
                .checked_sub(1)
                .ok_or_else(|| Error::Failed(format!("manifest {digest} is nested too deep")))?;
            for inner in manifests {
                self.manifest(outside, inner, None, deeper)?;
            }
        }
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for part in std::iter::once(&manifest["config"]).chain(layers) {
            if !part.is_null() {
                self.blob(outside, part)?;
            }
        }
        let media_type = descriptor["mediaType"]
            .as_str()
            .or_else(|| manifest["mediaType"].as_str())
            .unwrap_or("application/vnd.oci.image.manifest.v1+json");
        let path = self.path(&format!("manifests/{}", reference.unwrap_or(digest)));
        let content = Content::Stream {
            media_type,
            length: text.len() as u64,
            from: &mut text.as_bytes(),
        };
        self.send(outside, &Method::PUT, &path, content)?;
        Ok(())
    }

    fn blob(&self, outside: &mut Outside<'_>, descriptor: &Value) -> Result<(), Error> {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let file = blob(digest)?;
        let known = self.server.send(
            outside,
            &Method::HEAD,
            &self.name.host,
            &self.path(&format!("blobs/{digest}")),
            Content::None,
        )?;
        if known.status().is_success() {
            return Ok(());
        }
        let (mut from, length) = self.layout.file(&file)?;
        let begun = self.send(outside, &Method::POST, &self.path("blobs/uploads/"), Content::None)?;
        let location = begun.ok_or_else(|| Error::Answer {
            call: "POST blobs/uploads/".to_owned(),
            what: "no Location".to_owned(),
        })?;
        // a Location may be whole or from the root
        let path = location
            .split_once("://")
            .and_then(|(_, rest)| rest.find('/').map(|slash| rest[slash..].to_owned()))
            .unwrap_or(location);
        let mark = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{mark}digest={}", escape(digest));
        outside.say(&format!("Pushing {digest} ({length} bytes)"));
        let what = format!(
            "Pushing {}:",
            digest.chars().take("sha256:".len() + 12).collect::<String>()
        );
        progress::of_bytes(outside, &what, length, &mut from, |outside, from| {
            let content = Content::Stream {
                media_type: "application/octet-stream",
                length,
                from,
            };
            self.send(outside, &Method::PUT, &path, content).map(drop)
        })
    }

    /// One call to the registry; its Location, if it gave one.
    fn send(
        &self,
        outside: &Outside<'_>,
        method: &Method,
        path: &str,
        content: Content<'_>,
    ) -> Result<Option<String>, Error> {
        let host = &self.name.host;
        let mut response = self.server.send(outside, method, host, path, content)?;
        if !response.status().is_success() {
            let code = response.status().as_u16();
            let text = self.server.text(&mut response)?;
            return Err(Refusal::read(code, &text).into());
        }
        let location = response.headers().get("location");
        Ok(location.and_then(|l| l.to_str().ok()).map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let parse = |text: &str| Name::parse(text).map(|n| (n.host, n.repository, n.reference));
        let full = |host: &str, repository: &str, reference: &str| {
            Ok((host.to_owned(), repository.to_owned(), reference.to_owned()))
        };
        assert_eq!(
            parse("us-central1-docker.pkg.dev/p/r/i:v1"),
            full("us-central1-docker.pkg.dev", "p/r/i", "v1")
        );
        assert_eq!(parse("localhost:8787/a/b"), full("localhost:8787", "a/b", "latest"));
        for wrong in ["my-api", "a/b:c", "x.y/A:v", "x.y/a/../b:v", "x.y/a:v?x", "x.y/"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn digests_lead_nowhere_else() {
        let hex = "a".repeat(64);
        assert_eq!(
            blob(&format!("sha256:{hex}")).expect("a digest"),
            format!("blobs/sha256/{hex}")
        );
        for wrong in ["sha256:../../etc/passwd", "sha256:aa", "", "md5:aa"] {
            assert!(blob(wrong).is_err(), "{wrong}");
        }
    }
}
