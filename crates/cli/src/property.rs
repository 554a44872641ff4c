//! `config`: the defaults of this client, in a small INI file of its own.
//!
//! A property is `section/name`, or `name` in the section `core`, as in gcloud. Only those with an effect exist.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use model::{ProjectId, Region};

use crate::words::{Config, Global};
use crate::{Error, Outside, call};

/// The properties there are.
const KNOWN: &[(&str, &str)] = &[
    ("auth", "impersonate_service_account"),
    ("core", "account"),
    ("core", "disable_prompts"),
    ("core", "project"),
    ("run", "region"),
];

/// The content of the file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    path: PathBuf,
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Settings {
    pub(crate) fn open(outside: &Outside<'_>) -> Result<Self, Error> {
        let path = outside.config_dir.join("properties");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::File { path, source }),
        };
        Ok(Self {
            path,
            sections: parse(&text),
        })
    }

    pub(crate) fn get(&self, section: &str, name: &str) -> Option<&str> {
        self.sections.get(section)?.get(name).map(String::as_str)
    }

    /// Keeps a property, or forgets it.
    pub(crate) fn put(&mut self, section: &str, name: &str, value: Option<&str>) -> Result<(), Error> {
        let names = self.sections.entry(section.to_owned()).or_default();
        match value {
            Some(value) => names.insert(name.to_owned(), value.to_owned()),
            None => names.remove(name),
        };
        self.write()
    }

    fn write(&self) -> Result<(), Error> {
        write_whole(&self.path, &print(&self.sections))
    }
}

/// Writes a file so that a reader sees the old text or the new, never a part.
pub(crate) fn write_whole(path: &std::path::Path, text: &str) -> Result<(), Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    std::fs::write(&draft, text)
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(failed)
}

/// `[section]` and `name = value`, blank lines and comments left out.
pub(crate) fn parse(text: &str) -> BTreeMap<String, BTreeMap<String, String>> {
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else if let Some((name, value)) = line.split_once('=') {
            sections
                .entry(section.clone())
                .or_default()
                .insert(name.trim().to_owned(), value.trim().to_owned());
        }
    }
    sections
}

/// The text of sections as INI.
pub(crate) fn print(sections: &BTreeMap<String, BTreeMap<String, String>>) -> String {
    let mut text = String::new();
    for (section, names) in sections.iter().filter(|(_, names)| !names.is_empty()) {
        writeln!(text, "[{section}]").expect("a string takes text");
        for (name, value) in names {
            writeln!(text, "{name} = {value}").expect("a string takes text");
        }
    }
    text
}

fn known(property: &str) -> Result<(&'static str, &'static str), Error> {
    let (section, name) = property.split_once('/').unwrap_or(("core", property));
    let find = |(s, n): &&(&str, &str)| *s == section && *n == name;
    KNOWN.iter().find(find).copied().ok_or_else(|| {
        let all: Vec<String> = KNOWN.iter().map(|(s, n)| format!("{s}/{n}")).collect();
        Error::Failed(format!("property [{property}] is not served: {} are", all.join(", ")))
    })
}

pub(crate) fn run(outside: &mut Outside<'_>, global: &Global, word: &Config) -> Result<(), Error> {
    let mut settings = Settings::open(outside)?;
    match word {
        Config::GetValue { property } | Config::Get { property } => {
            let (section, name) = known(property)?;
            if let Some(value) = value(outside, global, &settings, section, name)? {
                outside.print(&value)
            } else {
                outside.say("(unset)");
                Ok(())
            }
        }
        Config::Set { property, value } => {
            let (section, name) = known(property)?;
            let wrong = |why: String| Error::Failed(format!("{section}/{name}: {why}"));
            match (section, name) {
                ("core", "project") => {
                    ProjectId::parse(value).map_err(|why| wrong(why.to_string()))?;
                }
                ("run", "region") => {
                    Region::parse(value).map_err(|why| wrong(why.to_string()))?;
                }
                ("core", "account") | ("auth", "impersonate_service_account") => {
                    if value.split(',').any(|one| !one.contains('@')) {
                        return Err(wrong(format!("[{value}] is no e-mail of an account")));
                    }
                }
                _ => {
                    if !["true", "false"].contains(&value.to_lowercase().as_str()) {
                        return Err(wrong(format!("[{value}] is neither true nor false")));
                    }
                }
            }
            settings.put(section, name, Some(value))?;
            outside.say(&format!("Updated property [{section}/{name}]."));
            Ok(())
        }
        Config::Unset { property } => {
            let (section, name) = known(property)?;
            settings.put(section, name, None)?;
            outside.say(&format!("Unset property [{section}/{name}]."));
            Ok(())
        }
        Config::List => {
            let text = print(&settings.sections);
            if text.is_empty() {
                outside.say("No property is set.");
                Ok(())
            } else {
                outside.print(text.trim_end())
            }
        }
    }
}

/// What counts: the flag, the file, else what the server that answers has.
fn value(
    outside: &Outside<'_>,
    global: &Global,
    settings: &Settings,
    section: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    if let Some(value) = settings.get(section, name)
        && (name != "project" || global.project.is_none())
        && (name != "region" || global.region.is_none())
    {
        return Ok(Some(value.to_owned()));
    }
    let server = |of: fn(&call::Server) -> String| match call::Server::find(outside, global) {
        Ok(server) => Ok(Some(of(&server))),
        Err(Error::Nobody { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    match name {
        "project" => server(|server| server.project.clone()),
        "region" => server(|server| server.region().to_owned()),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ini_round_trip() {
        let text = "# ours\n[core]\nproject = my-project\n\n[run]\nregion=us-central1\n";
        let sections = parse(text);
        assert_eq!(sections["core"]["project"], "my-project");
        let printed = "[core]\nproject = my-project\n[run]\nregion = us-central1\n";
        assert_eq!(print(&sections), printed);
        assert_eq!(parse(printed), sections);
    }

    #[test]
    fn only_known_properties() {
        assert_eq!(known("project").expect("known"), ("core", "project"));
        assert_eq!(known("run/region").expect("known"), ("run", "region"));
        let refused = known("compute/zone").expect_err("not served").to_string();
        assert!(refused.contains("compute/zone") && refused.contains("run/region"));
    }
}
