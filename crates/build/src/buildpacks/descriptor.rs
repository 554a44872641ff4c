//! `project.toml`: what a source says itself about its build by buildpacks. Both forms are read, that of schema version
//! 0.2 (`[_]`, `[io.buildpacks]`) and the older one (`[project]`, `[build]`), which Google's own documents show.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use serde::{Deserialize, Serialize};

/// What it is called where nobody says.
pub(crate) const NAME: &str = "project.toml";
/// Largest descriptor, in bytes: 1 MiB.
const MAX_BYTES: u64 = 1 << 20;

/// A source's own words.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) builder: Option<String>,
    /// The buildpacks to run, in place of the builder's own order.
    pub(crate) group: Vec<Member>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) files: Files,
}

/// One buildpack of the builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) id: String,
    /// None: the only one there is.
    pub(crate) version: Option<String>,
}

/// Which files of the source are built, by patterns as in `.gitignore`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) enum Files {
    #[default]
    All,
    Only(Vec<String>),
    Without(Vec<String>),
}

/// Why it is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescriptorError {
    #[error("the source has no {name}")]
    Absent { name: String },
    #[error("{name} is no file")]
    Kind { name: String },
    #[error("{name} has {bytes} bytes; the limit is {MAX_BYTES}")]
    Large { name: String, bytes: u64 },
    #[error("{name} is not a project descriptor: {why}")]
    Form { name: String, why: String },
    #[error("{name}: schema version \"{version}\" is not known, 0.1 and 0.2 are")]
    Version { name: String, version: String },
    #[error("{name}: {what} is not served by this Homerun")]
    NotServed { name: String, what: &'static str },
    #[error("{name}: include and exclude exclude each other")]
    Both { name: String },
    #[error("{name}: the pattern \"{pattern}\" is none: {why}")]
    Pattern { name: String, pattern: String, why: String },
    #[error("cannot read {name}")]
    Disk {
        name: String,
        #[source]
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Whole {
    #[serde(rename = "_")]
    head: Option<Head>,
    #[serde(default)]
    io: Io,
    /// The older form.
    build: Option<Older>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    schema_version: Option<String>,
}

#[derive(Default, Deserialize)]
struct Io {
    buildpacks: Option<Buildpacks>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Buildpacks {
    builder: Option<String>,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    #[serde(default)]
    group: Vec<toml::Table>,
    #[serde(default)]
    build: Environment,
    /// What the tables below were called for a while.
    #[serde(default)]
    env: FormerEnvironment,
    pre: Option<toml::Value>,
    post: Option<toml::Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Environment {
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FormerEnvironment {
    #[serde(default)]
    build: Vec<Variable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Older {
    builder: Option<String>,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    #[serde(default)]
    buildpacks: Vec<toml::Table>,
    #[serde(default)]
    env: Vec<Variable>,
}

impl Descriptor {
    /// Reads the one at `name` below the source, where one is named; else the usual one, which may be absent.
    pub(crate) fn of_source(source: &Path, directory: &str, named: Option<&str>) -> Result<Self, DescriptorError> {
        let name = named.map_or_else(|| Path::new(directory).join(NAME).display().to_string(), str::to_owned);
        let path = source.join(&name);
        let disk = |source| DescriptorError::Disk {
            name: name.clone(),
            source,
        };
        // Without following a link: the source's own file is meant.
        let found = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => return Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(DescriptorError::Absent { name }),
            found => found.map_err(disk)?,
        };
        if !found.is_file() {
            return Err(DescriptorError::Kind { name });
        }
        if found.len() > MAX_BYTES {
            return Err(DescriptorError::Large {
                name,
                bytes: found.len(),
            });
        }
        let text = fs::read_to_string(&path).map_err(disk)?;
        Self::read(&name, &text)
    }

    fn read(name: &str, text: &str) -> Result<Self, DescriptorError> {
        let form = |why: String| DescriptorError::Form {
            name: name.to_owned(),
            why,
        };
        let whole: Whole = toml::from_str(text).map_err(|error| form(error.message().to_owned()))?;
        let not_served = |what| DescriptorError::NotServed {
            name: name.to_owned(),
            what,
        };
        let version = whole.head.and_then(|head| head.schema_version);
        let older = match version.as_deref() {
            None => whole.io.buildpacks.is_none(),
            Some("0.1") => true,
            Some("0.2") => false,
            Some(version) => {
                return Err(DescriptorError::Version {
                    name: name.to_owned(),
                    version: version.to_owned(),
                });
            }
        };
        let (builder, include, exclude, group, variables) = if older {
            let build = whole.build.unwrap_or_default();
            (build.builder, build.include, build.exclude, build.buildpacks, build.env)
        } else {
            let build = whole.io.buildpacks.unwrap_or_default();
            if build.pre.is_some() {
                return Err(not_served("io.buildpacks.pre"));
            }
            if build.post.is_some() {
                return Err(not_served("io.buildpacks.post"));
            }
            let mut variables = build.build.env;
            if variables.is_empty() {
                variables = build.env.build;
            }
            (build.builder, build.include, build.exclude, build.group, variables)
        };
        let mut members = Vec::new();
        for table in group {
            if table.contains_key("uri") {
                return Err(not_served("a buildpack by its uri"));
            }
            if table.contains_key("script") {
                return Err(not_served("a buildpack as a script"));
            }
            let member: Member = table
                .try_into()
                .map_err(|error: toml::de::Error| form(error.message().to_owned()))?;
            members.push(member);
        }
        let files = match (include, exclude) {
            (None, None) => Files::All,
            (Some(only), None) => Files::Only(only),
            (None, Some(without)) => Files::Without(without),
            (Some(_), Some(_)) => return Err(DescriptorError::Both { name: name.to_owned() }),
        };
        let environment = variables.into_iter().map(|variable| (variable.name, variable.value));
        Ok(Self {
            builder,
            group: members,
            environment: environment.collect(),
            files,
        })
    }

    /// What of it only buildpacks could do; None is nothing.
    pub(crate) fn needs_buildpacks(&self) -> Option<&'static str> {
        if !self.environment.is_empty() {
            Some("variables of the build in its project.toml")
        } else if !self.group.is_empty() {
            Some("buildpacks in its project.toml")
        } else if self.files == Files::All {
            None
        } else {
            Some("include or exclude in its project.toml")
        }
    }
}

impl Files {
    /// Removes the files that are not to be built. Blocks on the disk.
    pub(crate) fn keep_in(&self, directory: &Path) -> Result<(), DescriptorError> {
        let (patterns, kept) = match self {
            Self::All => return Ok(()),
            Self::Only(patterns) => (patterns, true),
            Self::Without(patterns) => (patterns, false),
        };
        let mut builder = GitignoreBuilder::new(directory);
        for pattern in patterns {
            builder
                .add_line(None, pattern)
                .map_err(|error| DescriptorError::Pattern {
                    name: NAME.to_owned(),
                    pattern: pattern.clone(),
                    why: error.to_string(),
                })?;
        }
        let matcher = builder.build().map_err(|error| DescriptorError::Pattern {
            name: NAME.to_owned(),
            pattern: patterns.join(" "),
            why: error.to_string(),
        })?;
        sift(directory, &matcher, kept).map_err(|source| DescriptorError::Disk {
            name: "the source".to_owned(),
            source,
        })
    }
}

/// Removes what is matched, or what is not.
fn sift(directory: &Path, matcher: &Gitignore, kept: bool) -> io::Result<()> {
    let mut open: Vec<PathBuf> = vec![directory.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(&at)? {
            let entry = entry?;
            let (path, is_dir) = (entry.path(), entry.file_type()?.is_dir());
            let matched = matcher.matched_path_or_any_parents(&path, is_dir).is_ignore();
            match (matched == kept, is_dir) {
                // Below it, some may be asked for.
                (false, true) if kept => open.push(path),
                (false, true) => fs::remove_dir_all(path)?,
                (false, false) => fs::remove_file(path)?,
                (true, true) => open.push(path),
                (true, false) => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: &str, version: Option<&str>) -> Member {
        Member {
            id: id.to_owned(),
            version: version.map(str::to_owned),
        }
    }

    #[test]
    fn both_forms_are_read() {
        let newer = "[_]\nschema-version = \"0.2\"\nid = \"x\"\n[_.metadata]\na = 1\n[com.example]\nb = 2\n\
                     [io.buildpacks]\nbuilder = \"b/c:d\"\nexclude = [\"spec/\"]\n\
                     [[io.buildpacks.group]]\nid = \"one\"\nversion = \"1.0\"\n[[io.buildpacks.group]]\nid = \"two\"\n\
                     [[io.buildpacks.build.env]]\nname = \"A\"\nvalue = \"b\"\n";
        let older = "[project]\nid = \"x\"\n[build]\nbuilder = \"b/c:d\"\nexclude = [\"spec/\"]\n\
                     [[build.buildpacks]]\nid = \"one\"\nversion = \"1.0\"\n[[build.buildpacks]]\nid = \"two\"\n\
                     [[build.env]]\nname = \"A\"\nvalue = \"b\"\n";
        let expected = Descriptor {
            builder: Some("b/c:d".to_owned()),
            group: vec![member("one", Some("1.0")), member("two", None)],
            environment: vec![("A".to_owned(), "b".to_owned())],
            files: Files::Without(vec!["spec/".to_owned()]),
        };
        for text in [newer, older] {
            assert_eq!(
                Descriptor::read("project.toml", text).expect("read"),
                expected,
                "{text}"
            );
        }
        assert_eq!(Descriptor::read("p", "").expect("read"), Descriptor::default());
        let former = "[io.buildpacks]\n[[io.buildpacks.env.build]]\nname = \"A\"\nvalue = \"b\"\n";
        assert_eq!(Descriptor::read("p", former).expect("read").environment.len(), 1);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (text, told) in [
            ("[io", "not a project descriptor"),
            ("[_]\nschema-version = \"7.0\"\n", "schema version \"7.0\" is not known"),
            ("[io.buildpacks]\nbuilders = \"x\"\n", "unknown field `builders`"),
            ("[[build.env]]\nname = \"A\"\n", "missing field `value`"),
            ("[io.buildpacks]\ninclude = []\nexclude = []\n", "exclude each other"),
            (
                "[[io.buildpacks.pre.group]]\nid = \"x\"\n",
                "io.buildpacks.pre is not served",
            ),
            ("[[io.buildpacks.group]]\nuri = \"x\"\n", "by its uri is not served"),
            (
                "[[io.buildpacks.group]]\nid = \"x\"\n[io.buildpacks.group.script]\napi = \"0.5\"\n",
                "as a script is not served",
            ),
        ] {
            let said = Descriptor::read("project.toml", text).expect_err(text).to_string();
            assert!(said.starts_with("project.toml") && said.contains(told), "{said}");
        }
    }

    #[test]
    fn only_what_is_asked_for_stays() {
        for (files, left) in [
            (Files::All, vec!["a.go", "b.txt", "cmd/c.txt", "sub/d.go", "sub/e.txt"]),
            (
                Files::Only(vec!["cmd/".to_owned(), "*.go".to_owned()]),
                vec!["a.go", "cmd/c.txt", "sub/d.go"],
            ),
            (
                Files::Without(vec!["cmd/".to_owned(), "*.go".to_owned(), "!a.go".to_owned()]),
                vec!["a.go", "b.txt", "sub/e.txt"],
            ),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            for name in ["a.go", "b.txt", "cmd/c.txt", "sub/d.go", "sub/e.txt"] {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().expect("a parent")).expect("made");
                fs::write(path, "x").expect("written");
            }
            files.keep_in(dir.path()).expect("sifted");
            let mut found: Vec<String> = Vec::new();
            let mut open = vec![dir.path().to_owned()];
            while let Some(at) = open.pop() {
                for entry in fs::read_dir(at).expect("read") {
                    let path = entry.expect("an entry").path();
                    if path.is_dir() {
                        open.push(path);
                    } else {
                        let name = path.strip_prefix(dir.path()).expect("below it");
                        found.push(name.display().to_string());
                    }
                }
            }
            found.sort();
            assert_eq!(found, left, "{files:?}");
        }
    }

    #[test]
    fn one_that_is_named_must_be_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |named| Descriptor::of_source(dir.path(), "", named);
        assert_eq!(read(None).expect("absent"), Descriptor::default());
        let said = read(Some("other.toml")).expect_err("absent").to_string();
        assert_eq!(said, "the source has no other.toml");
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join(NAME)).expect("made");
        let said = read(None).expect_err("a link").to_string();
        assert_eq!(said, "project.toml is no file");
    }
}
