//! What an earlier build of an image has left besides the builder's own layers: which of them are in the store already,
//! and what it was built from. A source that was built before, in the same way and on the same base images, is not built
//! again.
//!
//! It is one small file beside the layers of the image, and goes with them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use image::{Digest, Images, Reference, Version};
use model::{BuildId, Pack, Recipe, SecretRef};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{buildpacks::Member, index::Index, layer, take::Layers};

/// How many ways in which an image was built are remembered; the newest.
const REMEMBERED: usize = 32;
/// Raised when the same build would give another image.
const VERSION: u32 = 1;

/// A build that went well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Built {
    key: String,
    pub(crate) id: String,
    /// Of the image.
    pub(crate) digest: String,
    /// Base images by their tags, and what these meant.
    bases: Vec<(String, String)>,
}

/// What is remembered of one image.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    version: u32,
    /// Of the layers below: with another base image they have other times.
    epoch: u64,
    layers: Layers,
    /// Newest first.
    built: Vec<Built>,
}

fn place(storage: &Path) -> PathBuf {
    storage.with_file_name("memory.json")
}

impl Memory {
    /// Of the image whose layers lie at `storage`. What cannot be read is forgotten. Blocks on the disk.
    pub(crate) fn read(storage: &Path) -> Self {
        let read = fs::read(place(storage)).ok();
        let memory: Option<Self> = read.and_then(|text| serde_json::from_slice(&text).ok());
        memory.filter(|memory| memory.version == VERSION).unwrap_or_default()
    }

    /// Keeps it beside the layers that lie at `storage`. When that fails the next build is not the quicker for it. Blocks on
    /// the disk, on a thread that runs tasks.
    pub(crate) fn write(self, storage: &Path) {
        if let Err(error) = tokio::task::block_in_place(|| self.put(storage)) {
            tracing::warn!(%error, "what a build was made of is not remembered");
        }
    }

    fn put(mut self, storage: &Path) -> io::Result<()> {
        self.version = VERSION;
        let (to, text) = (place(storage), serde_json::to_vec(&self)?);
        let part = to.with_extension("new");
        fs::write(&part, text)?;
        fs::rename(part, to)
    }

    /// Layers of the last build, as they are with the times of this one.
    pub(crate) fn layers(&self, epoch: u64) -> Layers {
        if self.epoch == epoch {
            self.layers.clone()
        } else {
            Layers::new()
        }
    }

    /// Of an image's layers those that are its own.
    pub(crate) fn keep_layers(&mut self, epoch: u64, mut of_image: Layers, of_bases: &Layers) {
        of_image.retain(|diff_id, _| !of_bases.contains_key(diff_id));
        self.epoch = epoch;
        self.layers = of_image;
    }

    pub(crate) fn remember(&mut self, key: String, id: &BuildId, digest: &str, bases: &[(Reference, Digest)]) {
        self.built.retain(|built| built.key != key);
        self.built.truncate(REMEMBERED - 1);
        let built = Built {
            key,
            id: id.as_str().to_owned(),
            digest: digest.to_owned(),
            bases: bases
                .iter()
                .map(|(name, digest)| (name.to_string(), digest.to_string()))
                .collect(),
        };
        self.built.insert(0, built);
    }

    /// The build with this key, where its image is still in all these repositories and its base images are what they
    /// were.
    pub(crate) async fn unchanged(
        &self,
        key: &str,
        images: &Images,
        references: &[Reference],
    ) -> Option<(Built, Digest)> {
        let built = self.built.iter().find(|built| built.key == key)?;
        let digest = Digest::from_str(&built.digest).ok()?;
        for (name, was) in &built.bases {
            let now = images.resolve(&name.parse().ok()?).await.ok()?;
            if now.digest.to_string() != *was {
                return None;
            }
        }
        let (images, repositories) = (images.clone(), references.to_vec());
        let held = tokio::task::spawn_blocking(move || {
            let version = Version::Digest(digest);
            let mut held = repositories
                .iter()
                .map(|name| images.manifest(name.repository(), &version));
            held.all(|found| found.is_ok())
        });
        held.await.ok()?.then(|| (built.clone(), digest))
    }
}

/// What decides on an image, as one name.
///
/// Of the base images only the names are in it, as the Dockerfile has them: what they mean is looked up. `secrets` are
/// the versions of the recipe's, by id.
pub(crate) fn key(
    source: &str,
    recipe: &Recipe,
    secrets: &[(String, SecretRef)],
    generated: Option<[&String; 2]>,
    builder: &str,
    indexes: &[Index],
) -> String {
    let indexes = named(indexes);
    let mut parts = serde_json::json!({
        "version": VERSION,
        "source": source,
        "directory": recipe.directory,
        "dockerfile": recipe.dockerfile,
        "arguments": recipe.build_args,
        "labels": recipe.labels,
        "target": recipe.target,
        "generated": generated,
        "builder": builder,
        "indexes": indexes,
    });
    if !secrets.is_empty() {
        parts["secrets"] = serde_json::json!(secrets);
    }
    layer::name(Sha256::new_with_prefix(parts.to_string()))
}

fn named(indexes: &[Index]) -> Vec<String> {
    let named = indexes.iter().map(|index| format!("{}={index}", index.kind()));
    named.collect()
}

/// What decides on an image that buildpacks make.
pub(crate) struct Packed<'p> {
    pub(crate) source: &'p str,
    pub(crate) pack: &'p Pack,
    pub(crate) group: &'p [Member],
    pub(crate) builder: Digest,
    /// The name is in the image's labels.
    pub(crate) run: (&'p Reference, Digest),
}

impl Packed<'_> {
    /// As one name.
    pub(crate) fn key(&self, indexes: &[Index]) -> String {
        let (run, run_digest) = &self.run;
        let parts = serde_json::json!({
            "version": VERSION,
            "source": self.source,
            "environment": self.pack.environment,
            "process": self.pack.process,
            // It would not be written.
            "cache": self.pack.cache_image,
            "group": self.group,
            "builder": self.builder.to_string(),
            "run": [run.to_string(), run_digest.to_string()],
            "indexes": named(indexes),
        });
        layer::name(Sha256::new_with_prefix(format!("buildpacks {parts}")))
    }
}

/// A sum over the files of a source: names, content, who may run them, links, directories. Not their times, and not the
/// order in which they came. Blocks on the disk.
///
/// # Errors
/// What cannot be read.
pub(crate) fn sum(source: &Path) -> io::Result<String> {
    let mut sum = Sha256::new();
    let mut open = vec![PathBuf::new()];
    let mut found = Vec::new();
    while let Some(below) = open.pop() {
        for entry in fs::read_dir(source.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(path.clone());
            }
            found.push((path, kind));
        }
    }
    found.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let mut buffer = vec![0; 128 << 10];
    for (path, kind) in found {
        // A length before each part, so that no two trees are one text.
        let mut part = |word: u8, bytes: &[u8]| {
            sum.update([word]);
            sum.update((bytes.len() as u64).to_le_bytes());
            sum.update(bytes);
        };
        let place = source.join(&path);
        part(b'n', path.as_os_str().as_bytes());
        if kind.is_dir() {
            part(b'd', b"");
        } else if kind.is_symlink() {
            part(b'l', fs::read_link(&place)?.as_os_str().as_bytes());
        } else {
            use std::os::unix::fs::PermissionsExt as _;
            let mut file = File::open(&place)?;
            let about = file.metadata()?;
            let runs = about.permissions().mode() & 0o111 != 0;
            part(if runs { b'x' } else { b'f' }, &about.len().to_le_bytes());
            loop {
                let read = file.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                sum.update(&buffer[..read]);
            }
        }
    }
    Ok(layer::name(sum))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use model::VersionRef;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            let place = dir.path().join(name);
            fs::create_dir_all(place.parent().expect("a parent")).expect("made");
            fs::write(place, content).expect("written");
        }
        dir
    }

    #[test]
    fn a_source_is_what_its_files_are() {
        let files = [("a", "1"), ("d/b", "2")];
        let first = tree(&files);
        let at = |dir: &tempfile::TempDir| sum(dir.path()).expect("readable");
        let expected = at(&first);
        let again = tree(&[files[1], files[0]]);
        let file = File::options().write(true).open(again.path().join("a"));
        file.and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
            .expect("dated");
        assert_eq!(at(&again), expected, "neither order nor times");
        for other in [
            &[("a", "1"), ("d/b", "3")][..],
            &[("a", "1"), ("d/c", "2")],
            &[("a", "1"), ("db", "2")],
            &[("a", "1"), ("d/b", "2"), ("c", "")],
            &[("a", "12"), ("d/b", "")],
        ] {
            assert_ne!(at(&tree(other)), expected, "{other:?}");
        }
        let change = |how: &dyn Fn(&Path)| {
            let dir = tree(&files);
            how(dir.path());
            assert_ne!(at(&dir), expected);
        };
        change(&|dir| fs::create_dir(dir.join("empty")).expect("made"));
        change(&|dir| fs::set_permissions(dir.join("a"), fs::Permissions::from_mode(0o755)).expect("set"));
        change(&|dir| {
            fs::remove_file(dir.join("a")).expect("removed");
            symlink("d/b", dir.join("a")).expect("made");
        });
    }

    #[test]
    fn every_word_of_a_recipe_counts() {
        let plain = Recipe::default();
        let expected = key("s", &plain, &[], None, "b", &[]);
        assert_eq!(
            key(
                "s",
                &Recipe {
                    no_cache: true,
                    ..plain.clone()
                },
                &[],
                None,
                "b",
                &[]
            ),
            expected
        );
        let pair = vec![("A".to_owned(), "1".to_owned())];
        for other in [
            Recipe {
                dockerfile: "D".to_owned(),
                ..plain.clone()
            },
            Recipe {
                directory: "D".to_owned(),
                ..plain.clone()
            },
            Recipe {
                build_args: pair.clone(),
                ..plain.clone()
            },
            Recipe {
                labels: pair,
                ..plain.clone()
            },
            Recipe {
                target: Some("t".to_owned()),
                ..plain.clone()
            },
        ] {
            assert_ne!(key("s", &other, &[], None, "b", &[]), expected, "{other:?}");
        }
        let version = |number| SecretRef {
            secret: "npm".parse().expect("a name"),
            version: VersionRef::Number(number),
        };
        let with = |id: &str, number| key("s", &plain, &[(id.to_owned(), version(number))], None, "b", &[]);
        assert_ne!(with("a", 1), with("a", 2));
        for other in [
            with("a", 1),
            key("t", &plain, &[], None, "b", &[]),
            key("s", &plain, &[], Some([&"FROM x".to_owned(), &String::new()]), "b", &[]),
            key("s", &plain, &[], None, "c", &[]),
            key(
                "s",
                &plain,
                &[],
                None,
                "b",
                &[Index::parse("pip=https://h.example").expect("an index")],
            ),
        ] {
            assert_ne!(other, expected);
        }
    }

    #[test]
    fn everything_that_buildpacks_see_counts() {
        let digest = |of: char| -> Digest {
            let text = format!("sha256:{}", of.to_string().repeat(64));
            text.parse().expect("a digest")
        };
        let run: Reference = "gcr.io/a/run:1".parse().expect("a name");
        let other_run: Reference = "gcr.io/a/run:2".parse().expect("a name");
        let pack = Pack::default();
        let red = Pack {
            environment: vec![("COLOR".to_owned(), "red".to_owned())],
            ..Pack::default()
        };
        let worker = Pack {
            process: Some("worker".to_owned()),
            ..Pack::default()
        };
        let group = [Member {
            id: "a/b".to_owned(),
            version: None,
        }];
        let plain = || Packed {
            source: "s",
            pack: &pack,
            group: &[],
            builder: digest('a'),
            run: (&run, digest('b')),
        };
        let expected = plain().key(&[]);
        assert_eq!(plain().key(&[]), expected);
        let index = Index::parse("pip=https://h.example").expect("an index");
        assert_ne!(plain().key(&[index]), expected);
        for (other, what) in [
            (Packed { source: "t", ..plain() }, "source"),
            (Packed { pack: &red, ..plain() }, "environment"),
            (
                Packed {
                    pack: &worker,
                    ..plain()
                },
                "process",
            ),
            (
                Packed {
                    group: &group,
                    ..plain()
                },
                "group",
            ),
            (
                Packed {
                    builder: digest('c'),
                    ..plain()
                },
                "builder",
            ),
            (
                Packed {
                    run: (&run, digest('c')),
                    ..plain()
                },
                "run image",
            ),
            (
                Packed {
                    run: (&other_run, digest('b')),
                    ..plain()
                },
                "its name",
            ),
        ] {
            assert_ne!(other.key(&[]), expected, "{what}");
        }
    }

    #[test]
    fn the_newest_ways_are_remembered() {
        let dir = tempfile::tempdir().expect("a directory");
        let storage = dir.path().join("storage");
        let id = BuildId::parse("0b1f2e3d-0000-4000-8000-000000000001").expect("an id");
        let mut memory = Memory::read(&storage);
        for number in 0..REMEMBERED + 3 {
            memory.remember(number.to_string(), &id, "sha256:1", &[]);
        }
        memory.remember("5".to_owned(), &id, "sha256:2", &[]);
        memory.put(&storage).expect("written");
        let memory = Memory::read(&storage);
        assert_eq!(memory.built.len(), REMEMBERED);
        assert_eq!(memory.built[0].digest, "sha256:2");
        assert!(memory.built.iter().all(|built| built.key != "0"));
        fs::write(place(&storage), "{").expect("written");
        assert_eq!(Memory::read(&storage).built, []);
    }
}
