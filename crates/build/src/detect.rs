//! How a source without a Dockerfile is built: which language it is in, what runs it, and the Dockerfile for that.
//!
//! Pure: names of files and the text of a few of them enter ([`Tree`]), a [`Plan`] leaves, or a [`Refusal`] that says what
//! to add. Nothing is guessed: of two languages, two servers or two lock files none is taken, unless a Procfile decides.
//!
//! ```text
//! Tree ── choose: one language, and why ── its module: steps and entrypoint ── Dockerfile ── Plan
//! ```

mod base;
mod compiled;
mod dockerfile;
mod java;
mod node;
mod python;
mod script;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use self::base::{Base, BaseError, Bases, base_pair};
use self::dockerfile::Dockerfile;

/// The files of a source: names of those up to four levels deep, and the text of those that tell something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    files: BTreeSet<String>,
    texts: BTreeMap<String, String>,
}

impl Tree {
    /// How many levels of names are of interest.
    pub const DEPTH: usize = 4;

    /// Whether the text of a file is of interest; only files in the root are.
    pub fn wants(name: &str) -> bool {
        const NAMES: [&str; 12] = [
            "Procfile",
            "requirements.txt",
            "pyproject.toml",
            "main.py",
            "app.py",
            "package.json",
            "go.mod",
            "Cargo.toml",
            "pom.xml",
            "settings.gradle",
            "settings.gradle.kts",
            "Gemfile",
        ];
        NAMES.contains(&name) || !name.contains('/') && [".csproj", ".go"].iter().any(|end| name.ends_with(end))
    }

    /// Adds a file that is there.
    pub fn add(&mut self, name: impl Into<String>) {
        self.files.insert(name.into());
    }

    /// Adds the text of a file, and that it is there.
    pub fn add_text(&mut self, name: &str, text: impl Into<String>) {
        self.add(name);
        self.texts.insert(name.to_owned(), text.into());
    }

    fn has(&self, name: &str) -> bool {
        self.files.contains(name)
    }

    fn text(&self, name: &str) -> &str {
        self.texts.get(name).map_or("", String::as_str)
    }

    /// The first of these that is there.
    fn first<'n>(&self, names: &[&'n str]) -> Option<&'n str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// Files of the root.
    fn of_root(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(String::as_str).filter(|name| !name.contains('/'))
    }

    fn is_below(&self, dir: &str) -> bool {
        self.files
            .iter()
            .any(|name| name.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// What a source is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Language {
    Python,
    Node,
    Go,
    Rust,
    Java,
    Ruby,
    Php,
    DotNet,
    Static,
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Python => "Python",
            Self::Node => "Node",
            Self::Go => "Go",
            Self::Rust => "Rust",
            Self::Java => "Java",
            Self::Ruby => "Ruby",
            Self::Php => "PHP",
            Self::DotNet => ".NET",
            Self::Static => "static site",
        })
    }
}

/// How a source is built and what it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub language: Language,
    /// The file that says so.
    pub because: String,
    /// A program and its arguments.
    pub entrypoint: Vec<String>,
    /// Which file says so, and how.
    pub entrypoint_because: String,
    /// Images that the Dockerfile begins stages with.
    pub bases: Vec<String>,
    /// What else the user may want to know.
    pub notes: Vec<String>,
    pub dockerfile: String,
    /// What stays out of the image where the source does not say so itself, in `.dockerignore`'s words.
    pub ignore: String,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entrypoint: Vec<&str> = self.entrypoint.iter().map(String::as_str).collect();
        writeln!(f, "detected {}: the source has {}", self.language, self.because)?;
        writeln!(
            f,
            "entrypoint {}: {}",
            dockerfile::list(&entrypoint),
            self.entrypoint_because
        )?;
        for base in &self.bases {
            writeln!(f, "base image {base}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f, "generated Dockerfile:")?;
        for line in self.dockerfile.lines() {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}

/// Why there is no plan, and what to add.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the source has no Dockerfile, and no file in its root tells how to build it: add a Dockerfile, or one of \
         requirements.txt, pyproject.toml, main.py, package.json, go.mod, Cargo.toml, pom.xml, build.gradle, Gemfile, \
         composer.json, index.php, a .csproj or index.html"
    )]
    Unknown,
    #[error(
        "the source has no Dockerfile, and may be {found}: add a Dockerfile, or a Procfile whose line \"web:\" begins \
         with the program of one of them"
    )]
    Ambiguous { found: String },
    #[error(
        "{language} was detected by {because}, but not what to run: {missing}; or add a Procfile with a line \"web: COMMAND\", or a Dockerfile"
    )]
    NoEntrypoint {
        language: Language,
        because: String,
        missing: String,
    },
    #[error("the Procfile has no line \"web: COMMAND\", which names what to run: add it")]
    NoWeb,
    #[error("{file}: {what} is not built without a Dockerfile: {instead}")]
    NotServed {
        file: String,
        what: String,
        instead: String,
    },
    #[error("{file} cannot be read: {why}")]
    Syntax { file: String, why: String },
    #[error(
        "{file}: the name {name:?} does not fit into a generated Dockerfile (letters, digits, \".\", \"_\" and \"-\", at \
         most 100): change it, or add a Dockerfile"
    )]
    Name { file: String, name: String },
    #[error(
        "the source has {first} and {second}, which say different things about the same packages: remove one of them"
    )]
    TwoLocks { first: String, second: String },
}

/// What runs.
#[derive(Debug)]
struct Entry {
    words: Vec<String>,
    because: String,
}

impl Entry {
    /// A program and its arguments.
    fn program(words: &[&str], because: impl Into<String>) -> Self {
        Self {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            because: because.into(),
        }
    }

    /// A line of shell. What of it is the source's must have been checked, unless all of it is.
    fn shell(line: &str, because: impl Into<String>) -> Self {
        Self::program(&["/bin/sh", "-c", line], because)
    }
}

/// What the module of a language makes.
#[derive(Debug)]
struct Draft {
    dockerfile: Dockerfile,
    entry: Entry,
    notes: Vec<String>,
    ignore: &'static [&'static str],
}

/// What the modules of languages are given.
#[derive(Debug, Clone, Copy)]
struct Given<'g> {
    tree: &'g Tree,
    bases: &'g Bases,
    /// The Procfile's line.
    web: Option<&'g str>,
    /// The file by which the language was found.
    because: &'g str,
}

impl Given<'_> {
    /// The Procfile's entrypoint.
    fn procfile(&self) -> Option<Entry> {
        self.web.map(|line| Entry::shell(line, "the Procfile's line web"))
    }

    fn no_entrypoint(&self, language: Language, missing: impl Into<String>) -> Refusal {
        Refusal::NoEntrypoint {
            language,
            because: self.because.to_owned(),
            missing: missing.into(),
        }
    }
}

/// Finds out how a source is built.
///
/// # Errors
/// Why not, and what to add.
pub fn plan(tree: &Tree, bases: &Bases) -> Result<Plan, Refusal> {
    if tree.has("project.toml") {
        return Err(Refusal::NotServed {
            file: "project.toml".to_owned(),
            what: "a project of buildpacks".to_owned(),
            instead: "name a builder in it, or for all sources by homerun up --build-builder, or add a Dockerfile"
                .to_owned(),
        });
    }
    let web = if tree.has("Procfile") {
        Some(web(tree.text("Procfile")).ok_or(Refusal::NoWeb)?)
    } else {
        None
    };
    let (language, because, mut notes) = choose(tree, web)?;
    let given = Given {
        tree,
        bases,
        web,
        because: &because,
    };
    let draft = match language {
        Language::Python => python::draft(given)?,
        Language::Node => node::draft(given)?,
        Language::Go => compiled::go(given)?,
        Language::Rust => compiled::rust(given)?,
        Language::Java => java::draft(given)?,
        Language::Ruby => script::ruby(given)?,
        Language::Php => script::php(given),
        Language::DotNet => compiled::dot_net(given)?,
        Language::Static => script::site(given),
    };
    notes.extend(draft.notes);
    let (dockerfile, mut bases) = draft.dockerfile.end(&draft.entry.words);
    bases.dedup();
    let mut ignore = vec![".git", ".gitignore", ".gcloudignore"];
    ignore.extend(draft.ignore);
    Ok(Plan {
        language,
        because,
        entrypoint: draft.entry.words,
        entrypoint_because: draft.entry.because,
        bases,
        notes,
        dockerfile,
        ignore: ignore.join("\n") + "\n",
    })
}

/// The command of a Procfile's line `web:`.
fn web(procfile: &str) -> Option<&str> {
    procfile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == "web")
        .map(|(_, command)| command.trim())
        .filter(|command| !command.is_empty())
}

/// How much a file says about the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Many programs have such a file too.
    Weak,
    /// A file of tools, in programs of other languages too.
    Tools,
    Full,
}

/// The files that tell languages, with what they say.
fn signs(tree: &Tree) -> Result<Vec<(Language, Weight, String)>, Refusal> {
    let mut found = Vec::new();
    let mut sign = |language, weight, file: Option<&str>| {
        if let Some(file) = file {
            found.push((language, weight, file.to_owned()));
        }
    };
    // In programs of other languages it has settings of tools.
    let python = if tree.has("pyproject.toml") && !python::is_project(tree)? {
        &["requirements.txt", "Pipfile", "main.py", "app.py", "manage.py"][..]
    } else {
        &[
            "requirements.txt",
            "pyproject.toml",
            "Pipfile",
            "main.py",
            "app.py",
            "manage.py",
        ]
    };
    sign(Language::Python, Weight::Full, tree.first(python));
    let node = if tree.has("package.json") && !node::is_program(tree)? {
        Weight::Tools
    } else {
        Weight::Full
    };
    sign(Language::Node, node, tree.first(&["package.json"]));
    sign(Language::Go, Weight::Full, tree.first(&["go.mod"]));
    sign(Language::Rust, Weight::Full, tree.first(&["Cargo.toml"]));
    sign(
        Language::Java,
        Weight::Full,
        tree.first(&["pom.xml", "build.gradle", "build.gradle.kts"]),
    );
    sign(Language::Ruby, Weight::Full, tree.first(&["Gemfile", "config.ru"]));
    sign(Language::Php, Weight::Full, tree.first(&["composer.json", "index.php"]));
    let net = tree.of_root().find(|name| {
        let end = name.rsplit_once('.').map_or("", |(_, end)| end);
        ["csproj", "sln", "slnx"].contains(&end)
    });
    sign(Language::DotNet, Weight::Full, net);
    sign(Language::Static, Weight::Weak, tree.first(&["index.html"]));
    Ok(found)
}

/// One language, the file that tells it, and what was left aside.
fn choose(tree: &Tree, web: Option<&str>) -> Result<(Language, String, Vec<String>), Refusal> {
    let signs = signs(tree)?;
    let most = signs
        .iter()
        .map(|(_, weight, _)| *weight)
        .max()
        .ok_or(Refusal::Unknown)?;
    let (top, rest): (Vec<_>, Vec<_>) = signs.into_iter().partition(|(_, weight, _)| *weight == most);
    let mut notes: Vec<String> = rest
        .iter()
        .map(|(language, _, file)| format!("{file} is left aside, which {language} programs have"))
        .collect();
    let named = web.and_then(language_of);
    let (chosen, others): (Vec<_>, Vec<_>) = match top.len() {
        1 => (top, Vec::new()),
        _ => top.into_iter().partition(|(language, _, _)| Some(*language) == named),
    };
    let Some((language, _, because)) = chosen.into_iter().next() else {
        let found: Vec<String> = others
            .iter()
            .map(|(language, _, file)| format!("{language} (it has {file})"))
            .collect();
        return Err(Refusal::Ambiguous {
            found: found.join(" or "),
        });
    };
    let aside = others.iter().map(|(language, _, file)| {
        format!("{file} is left aside, which {language} programs have: the Procfile begins with a program of another")
    });
    notes.extend(aside);
    Ok((language, because, notes))
}

/// The language whose program a command begins with.
fn language_of(command: &str) -> Option<Language> {
    let is_setting = |word: &&str| {
        word.split_once('=')
            .is_some_and(|(name, _)| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    };
    let program = command
        .split_whitespace()
        .skip_while(is_setting)
        .find(|word| *word != "exec")?;
    let program = program.rsplit('/').next().unwrap_or(program);
    match program {
        "python" | "python3" | "gunicorn" | "uvicorn" | "hypercorn" | "daphne" | "flask" | "fastapi" | "streamlit"
        | "uv" | "poetry" => Some(Language::Python),
        "node" | "npm" | "npx" | "yarn" | "pnpm" => Some(Language::Node),
        "bundle" | "ruby" | "rails" | "puma" | "rackup" | "unicorn" => Some(Language::Ruby),
        "java" => Some(Language::Java),
        "php" | "apache2-foreground" => Some(Language::Php),
        "dotnet" => Some(Language::DotNet),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_procfile() {
        for (text, line) in [
            ("web: a b\n", Some("a b")),
            (
                "release: x\nweb:gunicorn --bind :$PORT m:app\nweb: second",
                Some("gunicorn --bind :$PORT m:app"),
            ),
            ("worker: x\n", None),
            ("web:\n", None),
            ("", None),
        ] {
            assert_eq!(web(text), line, "{text}");
        }
    }

    #[test]
    fn programs_tell_languages() {
        for (command, language) in [
            ("gunicorn m:app", Some(Language::Python)),
            ("A=b exec /usr/bin/node x.js", Some(Language::Node)),
            ("./server", None),
            ("", None),
        ] {
            assert_eq!(language_of(command), language, "{command}");
        }
    }
}
