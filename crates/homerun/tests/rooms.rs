//! Keeps the house: which crate may use which, and who alone may use certain libraries. Reads the manifests.

use std::{collections::BTreeMap, path::PathBuf};

use toml::Table;

/// Complete: an edge that is not here is refused.
const ALLOWED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("capacity", &["model"]),
    ("store", &["model"]),
    ("image", &["model"]),
    ("bucket", &["model"]),
    ("identity", &["model"]),
    ("secret", &["model"]),
    ("engine", &["model", "image"]),
    ("control", &["model", "capacity", "store", "image", "engine", "secret"]),
    ("ingress", &["model", "capacity", "identity"]),
    ("build", &["model", "store", "image", "bucket", "engine"]),
    ("api", &["model", "store", "image", "bucket", "identity", "secret"]),
    ("door", &["identity"]),
    ("proxy", &[]),
    ("cli", &["model"]),
    (
        "homerun",
        &[
            "model", "capacity", "store", "image", "bucket", "identity", "engine", "control", "build", "ingress",
            "api", "door", "cli", "secret", "proxy",
        ],
    ),
    ("sim", &["model", "capacity"]),
    ("bench", &[]),
    ("e2e", &[]),
    ("hello", &[]),
];

/// Libraries with one home, and who that is. A build or test dependency counts as well.
const HOMES: &[(&str, &[&str])] = &[
    ("rusqlite", &["store"]),
    ("oci-client", &["image"]),
    ("oci-spec", &["image", "engine"]),
    ("reqwest", &["build"]),
    ("libc", &["engine"]),
    ("anyhow", &["homerun", "sim", "bench", "e2e"]),
    ("rcgen", &["door", "identity", "ingress"]),
    ("cel", &["identity"]),
    ("clap", &["cli", "homerun"]),
    ("argon2", &["secret"]),
    ("zeroize", &["model", "secret"]),
];

/// What model may stand on: the standard library, serde, and what wipes values of secrets.
const MODEL: &[&str] = &["serde", "zeroize"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn manifests() -> BTreeMap<String, Table> {
    let mut found = BTreeMap::new();
    let crates = std::fs::read_dir(root().join("crates")).expect("the crates' folder");
    let mut folders: Vec<PathBuf> = crates.map(|entry| entry.expect("an entry").path()).collect();
    folders.extend(["sim", "bench", "e2e", "images/hello"].map(|folder| root().join(folder)));
    for folder in folders {
        let text = std::fs::read_to_string(folder.join("Cargo.toml"))
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        found.insert(name, text.parse().expect("a manifest"));
    }
    found
}

fn dependencies<'a>(manifest: &'a Table, kinds: &[&str]) -> Vec<&'a str> {
    kinds
        .iter()
        .filter_map(|kind| manifest.get(*kind)?.as_table())
        .flat_map(|table| table.keys().map(String::as_str))
        .collect()
}

#[test]
fn crates_use_only_what_they_may() {
    let manifests = manifests();
    let ours: Vec<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for name in manifests.keys() {
        assert!(ours.contains(&name.as_str()), "{name} has no line in ALLOWED");
    }
    for (name, allowed) in ALLOWED {
        let used = dependencies(&manifests[*name], &["dependencies"]);
        for used in used.into_iter().filter(|used| ours.contains(used)) {
            assert!(allowed.contains(&used), "{name} must not use {used}");
        }
    }
}

#[test]
fn libraries_stay_in_their_homes() {
    for (name, manifest) in manifests() {
        for library in dependencies(&manifest, &["dependencies", "dev-dependencies", "build-dependencies"]) {
            for (guarded, homes) in HOMES {
                assert!(
                    library != *guarded || homes.contains(&name.as_str()),
                    "{name} must not use {library}"
                );
            }
        }
    }
}

#[test]
fn model_needs_next_to_nothing() {
    let manifests = manifests();
    for library in dependencies(&manifests["model"], &["dependencies"]) {
        assert!(MODEL.contains(&library), "model must not use {library}");
    }
    let capacity = dependencies(&manifests["capacity"], &["dependencies"]);
    assert_eq!(capacity, ["model"], "capacity is pure");
}

#[test]
fn unsafe_code_is_the_engines_alone() {
    for name in manifests().keys().filter(|name| *name != "engine" && *name != "hello") {
        let folder = match name.as_str() {
            "sim" | "bench" | "e2e" => root().join(name).join("src"),
            _ => root().join("crates").join(name).join("src"),
        };
        for file in rust_files(&folder) {
            let text = std::fs::read_to_string(&file).expect("a source file");
            assert!(
                !text.contains("expect(unsafe_code"),
                "{} lifts the ban on unsafe code",
                file.display()
            );
        }
    }
}

#[test]
fn every_crate_root_opens_with_prose() {
    for name in manifests().keys().filter(|name| *name != "hello") {
        let folder = match name.as_str() {
            "sim" | "bench" | "e2e" => root().join(name).join("src"),
            _ => root().join("crates").join(name).join("src"),
        };
        let lib = folder.join("lib.rs");
        let file = if lib.exists() { lib } else { folder.join("main.rs") };
        let text = std::fs::read_to_string(&file).expect("a crate root");
        let lines = text.lines().take_while(|line| line.starts_with("//!")).count();
        assert!(lines >= 3, "{} does not say what lives here", file.display());
    }
}

fn rust_files(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a source folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
