//! Node: packages by the package manager whose lock file is there, a build where the program names one, and `npm start`.

use serde_json::{Map, Value};

use super::{
    Draft, Entry, Given, Language, Refusal, Tree,
    base::Base,
    dockerfile::{Dockerfile, fits},
};

const IGNORE: &[&str] = &["node_modules", "npm-debug.log"];
/// What `npm start` runs where nothing else is said, and what else programs are called.
const PROGRAMS: [&str; 3] = ["server.js", "index.js", "app.js"];

fn package(tree: &Tree) -> Result<Map<String, Value>, Refusal> {
    let syntax = |why: String| Refusal::Syntax {
        file: "package.json".to_owned(),
        why,
    };
    match serde_json::from_str(tree.text("package.json")) {
        Ok(Value::Object(package)) => Ok(package),
        Ok(_) => Err(syntax("it is no object".to_owned())),
        Err(error) => Err(syntax(error.to_string())),
    }
}

fn script<'p>(package: &'p Map<String, Value>, name: &str) -> Option<&'p str> {
    package.get("scripts")?.get(name)?.as_str()
}

/// The file that `main` names, as far as it is there.
fn main(tree: &Tree, package: &Map<String, Value>) -> Option<String> {
    let named = package.get("main")?.as_str()?;
    let path = named.trim_start_matches("./");
    [path.to_owned(), format!("{path}.js"), format!("{path}/index.js")]
        .into_iter()
        .find(|file| tree.has(file))
}

fn entry(tree: &Tree, package: &Map<String, Value>) -> Option<Entry> {
    if script(package, "start").is_some() {
        return Some(Entry::program(&["npm", "start"], "package.json has the script start"));
    }
    if let Some(file) = main(tree, package) {
        let because = "package.json names it as main";
        return Some(Entry::program(&["node", &format!("./{file}")], because));
    }
    let file = tree.first(&PROGRAMS)?;
    Some(Entry::program(&["node", file], format!("there is {file}")))
}

/// Whether `package.json` is one of a program that can be started, and not only of tools.
pub(super) fn is_program(tree: &Tree) -> Result<bool, Refusal> {
    Ok(entry(tree, &package(tree)?).is_some())
}

/// How a package manager is used.
struct Manager {
    lock: &'static str,
    name: &'static str,
    /// What brings it, before all else.
    brought: Brought,
    /// A line of shell that makes the lock file name the registry in force.
    relock: Option<&'static str>,
    all: &'static [&'static str],
    /// Without what only the build needs.
    used: &'static [&'static str],
    /// After a build, takes away what only the build needed.
    prune: Option<&'static [&'static str]>,
}

/// Where a package manager comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brought {
    /// It is in the base image.
    Already,
    /// It is this package of npm's, in the version that the program names.
    ByNpm {
        package: &'static str,
        /// In the place of another of its name.
        replaces: bool,
    },
}

const NPM: Manager = Manager {
    lock: "package-lock.json",
    name: "npm",
    brought: Brought::Already,
    relock: None,
    all: &["npm", "ci", "--include=dev"],
    used: &["npm", "ci", "--omit=dev"],
    prune: Some(&["npm", "prune", "--omit=dev"]),
};

const SHRINKWRAP: Manager = Manager {
    lock: "npm-shrinkwrap.json",
    ..NPM
};

const PNPM: Manager = Manager {
    lock: "pnpm-lock.yaml",
    name: "pnpm",
    brought: Brought::ByNpm {
        package: "pnpm",
        replaces: false,
    },
    relock: None,
    all: &["pnpm", "install", "--frozen-lockfile", "--prod=false"],
    used: &["pnpm", "install", "--frozen-lockfile", "--prod"],
    prune: Some(&["pnpm", "prune", "--prod"]),
};

/// Yarn's first version asks for the URLs of its lock file, whatever registry is set.
const RELOCK: &str = r#"sed -i "s!https://registry\.\(yarnpkg\.com\|npmjs\.org\)/!$(npm config get registry | sed 's!/*$!/!')!" yarn.lock"#;

const YARN: Manager = Manager {
    lock: "yarn.lock",
    name: "yarn",
    brought: Brought::Already,
    relock: Some(RELOCK),
    all: &["yarn", "install", "--frozen-lockfile", "--production=false"],
    used: &["yarn", "install", "--frozen-lockfile", "--production"],
    prune: None,
};

/// Installs by yarn from its second version on. It reads no configuration of npm's, wants to be told of a registry without
/// TLS, and would otherwise lay packages where only programs that it starts find them.
const BERRY_INSTALL: &[&str] = &[
    "/bin/sh",
    "-c",
    "YARN_NPM_REGISTRY_SERVER=\"$(npm config get registry)\" YARN_UNSAFE_HTTP_WHITELIST=127.0.0.1 YARN_ENABLE_TELEMETRY=0 \
     YARN_NODE_LINKER=node-modules exec yarn install --immutable",
];

/// Yarn from its second version on, which has another grammar. The base image has its first version under the same name.
const BERRY: Manager = Manager {
    brought: Brought::ByNpm {
        package: "@yarnpkg/cli-dist",
        replaces: true,
    },
    relock: None,
    all: BERRY_INSTALL,
    used: BERRY_INSTALL,
    ..YARN
};

/// Without a lock file.
const UNLOCKED: Manager = Manager {
    lock: "",
    all: &["npm", "install", "--include=dev"],
    used: &["npm", "install", "--omit=dev"],
    ..NPM
};

fn manager(tree: &Tree) -> Result<Manager, Refusal> {
    let yarn = if tree.has(".yarnrc.yml") { BERRY } else { YARN };
    let mut found = [SHRINKWRAP, NPM, PNPM, yarn]
        .into_iter()
        .filter(|manager| tree.has(manager.lock));
    match (found.next(), found.next()) {
        (None, _) => Ok(UNLOCKED),
        (Some(one), None) => Ok(one),
        (Some(one), Some(other)) => Err(Refusal::TwoLocks {
            first: one.lock.to_owned(),
            second: other.lock.to_owned(),
        }),
    }
}

/// The version of a package manager that the program names, as in `pnpm@9.15.9+sha512.ab`, without the sum.
fn version<'p>(package: &'p Map<String, Value>, manager: &str) -> Result<Option<&'p str>, Refusal> {
    let named = package
        .get("packageManager")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let Some(version) = named.strip_prefix(manager).and_then(|rest| rest.strip_prefix('@')) else {
        return Ok(None);
    };
    let version = version.split('+').next().unwrap_or_default();
    if fits(version) {
        return Ok(Some(version));
    }
    Err(Refusal::Name {
        file: "package.json".to_owned(),
        name: version.to_owned(),
    })
}

pub(super) fn draft(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let package = package(tree)?;
    let Some(entry) = given.procfile().or_else(|| entry(tree, &package)) else {
        let missing = "add a script \"start\" or a \"main\" that is there to package.json, or server.js";
        return Err(given.no_entrypoint(Language::Node, missing));
    };
    let manager = manager(tree)?;
    let base = given.bases.of(Base::Node);
    let mut notes = Vec::new();
    let has = |field: &str| {
        package
            .get(field)
            .and_then(Value::as_object)
            .is_some_and(|listed| !listed.is_empty())
    };
    let installs =
        !manager.lock.is_empty() || has("dependencies") || has("devDependencies") || has("optionalDependencies");
    if !installs {
        notes.push("package.json asks for no package, and nothing is installed".to_owned());
    } else if manager.lock.is_empty() {
        notes.push("packages by npm; there is no lock file, so that versions may change".to_owned());
    } else {
        notes.push(format!("packages by {}, because of {}", manager.name, manager.lock));
    }
    if let Some(wanted) = package.get("engines").and_then(|engines| engines.get("node")?.as_str()) {
        notes.push(format!(
            "package.json asks for node {wanted:?}; the base image decides, see --build-base"
        ));
    }
    let bring: Option<Vec<String>> = match manager.brought {
        Brought::ByNpm {
            package: called,
            replaces,
        } if installs => {
            let version = version(&package, manager.name)?;
            if version.is_none() {
                notes.push(format!(
                    "package.json has no packageManager that names a version of {0}, and the newest {0} is taken",
                    manager.name
                ));
            }
            let version = version.map(|version| format!("@{version}")).unwrap_or_default();
            let package = format!("{called}{version}");
            let force: &[&str] = if replaces { &["--force"] } else { &[] };
            let words = [&["npm", "install", "--global"], force, &[&package]].concat();
            Some(words.into_iter().map(str::to_owned).collect())
        }
        Brought::Already | Brought::ByNpm { .. } => None,
    };
    let build = ["gcp-build", "build"]
        .into_iter()
        .find(|name| script(&package, name).is_some());
    let wanted: Vec<&str> = [
        "package.json",
        manager.lock,
        ".npmrc",
        ".yarnrc.yml",
        "pnpm-workspace.yaml",
    ]
    .into_iter()
    .filter(|name| tree.has(name))
    .collect();
    // What workspaces and local packages are is known only with all sources.
    let needs_all = package.contains_key("workspaces") || tree.has("pnpm-workspace.yaml") || tree.is_below(".yarn");
    let mut file = Dockerfile::begin();
    let install = |file: &mut Dockerfile, words: &[&str]| {
        if let Some(bring) = &bring {
            file.run(&bring.iter().map(String::as_str).collect::<Vec<_>>());
        }
        if !installs {
            return;
        }
        if needs_all {
            file.copy_all();
        } else {
            file.copy(&wanted);
        }
        if let Some(relock) = manager.relock {
            file.shell(relock);
        }
        file.run(words);
    };
    if let Some(build) = build {
        notes.push(format!(
            "package.json has the script {build}, which runs before the program is taken over"
        ));
        file.stage(base, "build").work_in("/app");
        install(&mut file, manager.all);
        file.copy_all().run(&["npm", "run", build]);
        if let Some(prune) = manager.prune.filter(|_| installs) {
            file.run(prune);
        }
        file.last(base)
            .work_in("/app")
            .env("NODE_ENV=production")
            .copy_from_owned("build", "/app", "./");
    } else {
        file.last(base).work_in("/app").env("NODE_ENV=production");
        install(&mut file, manager.used);
        file.copy_all_owned();
    }
    Ok(Draft {
        dockerfile: file,
        entry,
        notes,
        ignore: IGNORE,
    })
}
