//! Python: packages by pip, in the versions of uv's or poetry's lock file where there is one; the server by what the
//! program imports and requires.

use std::collections::BTreeSet;

use super::{Draft, Entry, Given, Language, Refusal, Tree, base::Base, dockerfile::Dockerfile, dockerfile::fits};

/// Modules that make applications for asynchronous servers.
const ASGI: [&str; 4] = ["fastapi", "starlette", "quart", "litestar"];
/// Modules that make applications for the others.
const WSGI: [&str; 4] = ["flask", "bottle", "falcon", "pyramid"];

const IGNORE: &[&str] = &["**/__pycache__", "**/*.pyc", ".venv", "venv"];

fn project(tree: &Tree) -> Result<toml::Table, Refusal> {
    tree.text("pyproject.toml")
        .parse()
        .map_err(|why: toml::de::Error| Refusal::Syntax {
            file: "pyproject.toml".to_owned(),
            why: why.message().to_owned(),
        })
}

fn poetry(project: &toml::Table) -> Option<&toml::Table> {
    project.get("tool")?.get("poetry")?.as_table()
}

/// Whether `pyproject.toml` is one of a program, and not only of tools that look at it.
pub(super) fn is_project(tree: &Tree) -> Result<bool, Refusal> {
    let project = project(tree)?;
    let is_locked = tree.first(&["uv.lock", "poetry.lock"]).is_some();
    Ok(is_locked
        || project.contains_key("project")
        || project.contains_key("build-system")
        || poetry(&project).is_some())
}

/// The name of what a requirement asks for, with what its extras bring.
fn required(line: &str) -> Vec<String> {
    let line = line.trim();
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
        .unwrap_or(line.len());
    let name = line[..end].to_ascii_lowercase().replace(['_', '.'], "-");
    if name.is_empty() {
        return Vec::new();
    }
    let extras = line[end..]
        .trim_start()
        .strip_prefix('[')
        .and_then(|rest| rest.split(']').next())
        .unwrap_or_default();
    let brings_uvicorn = name == "fastapi"
        && extras
            .split(',')
            .any(|extra| ["standard", "all"].contains(&extra.trim()));
    let mut names = vec![name];
    if brings_uvicorn {
        names.push("uvicorn".to_owned());
    }
    names
}

/// The lines of `requirements.txt` that ask for something.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn requirements(tree: &Tree) -> Result<BTreeSet<String>, Refusal> {
    let mut names: BTreeSet<String> = lines(tree.text("requirements.txt")).flat_map(required).collect();
    if tree.has("pyproject.toml") {
        let project = project(tree)?;
        let listed = project.get("project").and_then(|project| project.get("dependencies"));
        let listed = listed.and_then(toml::Value::as_array).into_iter().flatten();
        names.extend(listed.filter_map(toml::Value::as_str).flat_map(required));
        let of_poetry = poetry(&project).and_then(|poetry| poetry.get("dependencies")?.as_table());
        names.extend(
            of_poetry
                .into_iter()
                .flat_map(toml::Table::keys)
                .flat_map(|name| required(name)),
        );
    }
    Ok(names)
}

/// Whether a program imports a module.
fn imports(text: &str, module: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty());
        matches!(words.next(), Some("import" | "from")) && words.next() == Some(module)
    })
}

/// Whether `app` is made at the top level of a program.
fn makes_app(text: &str) -> bool {
    text.lines().any(|line| {
        let rest = line.strip_prefix("app").map(str::trim_start);
        rest.is_some_and(|rest| {
            let annotated = rest.starts_with(':') && rest.contains('=');
            annotated || rest.starts_with('=') && !rest.starts_with("==")
        })
    })
}

fn runs_itself(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("if __name__"))
}

fn gunicorn(application: &str, because: String) -> Entry {
    let line = format!("exec gunicorn --bind 0.0.0.0:\"$PORT\" --workers 1 --threads 8 --timeout 0 {application}");
    Entry::shell(&line, because)
}

fn uvicorn(application: &str, because: String) -> Entry {
    let line = format!("exec uvicorn --host 0.0.0.0 --port \"$PORT\" {application}");
    Entry::shell(&line, because)
}

fn entry(given: Given<'_>) -> Result<Entry, Refusal> {
    if let Some(entry) = given.procfile() {
        return Ok(entry);
    }
    let tree = given.tree;
    let required = requirements(tree)?;
    let requires = |name: &str| required.contains(name);
    let Some(file) = tree.first(&["main.py", "app.py"]) else {
        return django(given, requires("gunicorn"));
    };
    let text = tree.text(file);
    let itself = || Entry::program(&["python3", file], format!("there is {file}"));
    if !makes_app(text) {
        return Ok(itself());
    }
    let application = format!("{}:app", file.trim_end_matches(".py"));
    let asynchronous = ASGI.into_iter().find(|module| imports(text, module));
    let other = WSGI.into_iter().find(|module| imports(text, module));
    let because = |server: &str, module: Option<&str>| match module {
        Some(module) => format!("{file} makes app and imports {module}, and {server} is required"),
        None => format!("{file} makes app, and {server} is required"),
    };
    if asynchronous.is_some() && requires("uvicorn") {
        return Ok(uvicorn(&application, because("uvicorn", asynchronous)));
    }
    if asynchronous.is_none() && requires("gunicorn") {
        return Ok(gunicorn(&application, because("gunicorn", other)));
    }
    if asynchronous.is_none() && other.is_none() && requires("uvicorn") {
        return Ok(uvicorn(&application, because("uvicorn", None)));
    }
    let module = asynchronous.or(other);
    match module {
        Some(module) if !runs_itself(text) => {
            let server = if asynchronous.is_some() { "uvicorn" } else { "gunicorn" };
            let missing = format!(
                "{file} makes app by {module}, and no server for it is required; add {server} to what the program requires"
            );
            Err(given.no_entrypoint(Language::Python, missing))
        }
        Some(_) | None => Ok(itself()),
    }
}

/// Django's programs have their application one level below.
fn django(given: Given<'_>, has_server: bool) -> Result<Entry, Refusal> {
    let found: Vec<&str> = given
        .tree
        .files
        .iter()
        .filter_map(|name| name.strip_suffix("/wsgi.py"))
        .filter(|dir| !dir.contains('/'))
        .collect();
    match found[..] {
        [dir] if given.tree.has("manage.py") && has_server => {
            if !fits(dir) || dir.contains(['.', '-']) {
                return Err(Refusal::Name {
                    file: format!("{dir}/wsgi.py"),
                    name: dir.to_owned(),
                });
            }
            Ok(gunicorn(
                &format!("{dir}.wsgi"),
                format!("there are manage.py and {dir}/wsgi.py, and gunicorn is required"),
            ))
        }
        [dir] if given.tree.has("manage.py") => Err(given.no_entrypoint(
            Language::Python,
            format!("{dir}/wsgi.py needs a server; add gunicorn to what the program requires"),
        )),
        _ => Err(given.no_entrypoint(Language::Python, "add main.py or app.py")),
    }
}

const PIP: [&str; 4] = ["python3", "-m", "pip", "install"];
const PIP_ENV: &str =
    "PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_BREAK_SYSTEM_PACKAGES=1";

/// What a lock file asks for, as pip reads it.
const WANTED: &str = "/requirements.txt";

/// A program with a lock file of its own. The file names URLs of the index that it was made with; so it is turned into
/// requirements with their hashes, which pip gets from its own index. The program itself is in no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Locker {
    name: &'static str,
    lock: &'static str,
    packages: &'static [&'static str],
    env: &'static str,
    export: &'static [&'static str],
    without_hashes: &'static str,
}

const UV: Locker = Locker {
    name: "uv",
    lock: "uv.lock",
    packages: &["uv"],
    env: "UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never",
    export: &["uv", "export", "--quiet", "--frozen", "--no-dev", "--no-emit-project"],
    without_hashes: "--no-hashes",
};

const POETRY: Locker = Locker {
    name: "poetry",
    lock: "poetry.lock",
    packages: &["poetry", "poetry-plugin-export"],
    env: "POETRY_NO_INTERACTION=1 POETRY_VIRTUALENVS_CREATE=false",
    export: &["poetry", "export", "--only", "main", "--without-urls"],
    without_hashes: "--without-hashes",
};

/// Whether the project asks for what is among its own sources: a member of its workspace, or a path. pip has no hashes for
/// these.
fn names_paths(project: &toml::Table) -> bool {
    let of_uv = project.get("tool").and_then(|tool| tool.get("uv"));
    let sources = of_uv.and_then(|uv| uv.get("sources")?.as_table());
    let wanted = poetry(project).and_then(|poetry| poetry.get("dependencies")?.as_table());
    let by_path = |source: &toml::Value| source.get("path").is_some() || source.get("workspace").is_some();
    let any = |table: Option<&toml::Table>| table.is_some_and(|table| table.values().any(by_path));
    of_uv.is_some_and(|uv| uv.get("workspace").is_some()) || any(sources) || any(wanted)
}

/// Whether uv installs the project itself.
fn is_package(project: &toml::Table) -> bool {
    let said = project
        .get("tool")
        .and_then(|tool| tool.get("uv")?.get("package")?.as_bool());
    said.unwrap_or_else(|| project.contains_key("build-system"))
}

/// The stage that becomes the image.
fn begin<'f>(file: &'f mut Dockerfile, base: &str) -> &'f mut Dockerfile {
    file.last(base).work_in("/app").env("PYTHONUNBUFFERED=1").env(PIP_ENV)
}

/// Installs what a lock file asks for, and answers what is to be noted of it.
fn install_locked(file: &mut Dockerfile, base: &str, project: &toml::Table, locker: Locker) -> String {
    let by_path = names_paths(project);
    file.stage(base, "lock").work_in("/app").env(PIP_ENV);
    file.run(&[&PIP[..], locker.packages].concat()).env(locker.env);
    if by_path {
        file.copy_all();
    } else {
        file.copy(&["pyproject.toml", locker.lock]);
    }
    let hashes: &[&str] = if by_path { &[locker.without_hashes] } else { &[] };
    file.run(&[locker.export, hashes, &["-o", WANTED]].concat());
    begin(file, base).copy_from("lock", WANTED, WANTED);
    let install = [&PIP[..], &["--requirement", WANTED]].concat();
    if by_path {
        file.copy_all_owned().run(&install);
    } else {
        file.run(&install).copy_all_owned();
    }
    if locker == UV && is_package(project) {
        file.run(&[&PIP[..], &["--no-deps", "."]].concat());
    }
    let Locker { name, lock, .. } = locker;
    format!("packages by pip in the versions that {name} knows, because of {lock}")
}

/// Installs what a source without a lock file asks for, and answers what is to be noted of it.
fn install(file: &mut Dockerfile, tree: &Tree, is_project: bool) -> Result<Option<String>, Refusal> {
    if tree.has("requirements.txt") {
        let wanted: Vec<&str> = lines(tree.text("requirements.txt")).collect();
        // What is named by a path is among the sources.
        let by_path = wanted
            .iter()
            .any(|line| line.starts_with(['-', '.', '/']) || line.contains("file:"));
        let install = [&PIP[..], &["--requirement", "requirements.txt"]].concat();
        if wanted.is_empty() {
            file.copy_all_owned();
            return Ok(Some(
                "requirements.txt asks for nothing, and nothing is installed".to_owned(),
            ));
        }
        if by_path {
            file.copy_all_owned().run(&install);
        } else {
            file.copy(&["requirements.txt"]).run(&install).copy_all_owned();
        }
        Ok(Some("packages by pip, because of requirements.txt".to_owned()))
    } else if tree.has("Pipfile") {
        Err(Refusal::NotServed {
            file: "Pipfile".to_owned(),
            what: "a program whose packages pipenv knows".to_owned(),
            instead: "add requirements.txt (pipenv requirements > requirements.txt), or a Dockerfile".to_owned(),
        })
    } else if is_project {
        file.copy_all_owned().run(&[&PIP[..], &["."]].concat());
        Ok(Some(
            "packages by pip, because of pyproject.toml; it has no lock file, so that versions may change".to_owned(),
        ))
    } else {
        file.copy_all_owned();
        Ok(None)
    }
}

pub(super) fn draft(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let entry = entry(given)?;
    let mut file = Dockerfile::begin();
    let base = given.bases.of(Base::Python);
    let is_project = tree.has("pyproject.toml") && is_project(tree)?;
    if tree.has("uv.lock") && tree.has("poetry.lock") {
        return Err(Refusal::TwoLocks {
            first: "uv.lock".to_owned(),
            second: "poetry.lock".to_owned(),
        });
    }
    let mut lockers = [UV, POETRY].into_iter();
    let note = match lockers.find(|locker| is_project && tree.has(locker.lock)) {
        Some(locker) => Some(install_locked(&mut file, base, &project(tree)?, locker)),
        None => install(begin(&mut file, base), tree, is_project)?,
    };
    Ok(Draft {
        dockerfile: file,
        entry,
        notes: note.into_iter().collect(),
        ignore: IGNORE,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_requirement_names() {
        for (line, names) in [
            ("Flask==3.0", &["flask"][..]),
            ("  google_cloud.x >= 1 ; python_version > '3'", &["google-cloud-x"]),
            ("fastapi[standard]~=0.1", &["fastapi", "uvicorn"]),
            ("uvicorn[standard]", &["uvicorn"]),
            ("-r other.txt", &["-r"]),
            ("# gunicorn", &[]),
        ] {
            assert_eq!(required(line), names, "{line}");
        }
    }

    #[test]
    fn what_a_program_says() {
        let text = "from flask import Flask\nimport os, uvicorn\n\napp = Flask(__name__)\n";
        assert!(makes_app(text) && imports(text, "flask") && imports(text, "os"));
        assert!(!imports(text, "fastapi") && !runs_itself(text));
        assert!(makes_app("app: Flask = make()\n"));
        for no in [
            "apple = 1\n",
            "  app = 1\n",
            "app == 1\n",
            "application = 1\n",
            "app.run()\n",
        ] {
            assert!(!makes_app(no), "{no}");
        }
    }
}
