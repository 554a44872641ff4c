//! What is made of sources without a Dockerfile: one directory each below `recipes`, with the source and the plan; the
//! refusals; and that no text of a source becomes an instruction.

use std::{
    fs,
    path::{Path, PathBuf},
};

use homerun_build::{Base, Bases, Tree, plan};
use proptest::prelude::*;
use serde_json::json;

fn add(root: &Path, below: &str, level: usize, tree: &mut Tree) {
    for entry in fs::read_dir(root.join(below)).expect("a directory") {
        let entry = entry.expect("an entry");
        let last = entry.file_name().into_string().expect("a name");
        let name = if below.is_empty() {
            last
        } else {
            format!("{below}/{last}")
        };
        if entry.file_type().expect("a kind").is_dir() {
            if level < Tree::DEPTH {
                add(root, &name, level + 1, tree);
            }
        } else if Tree::wants(&name) {
            tree.add_text(&name, fs::read_to_string(entry.path()).expect("text"));
        } else {
            tree.add(name);
        }
    }
}

fn tree(files: &[(&str, &str)]) -> Tree {
    let mut tree = Tree::default();
    for (name, text) in files {
        if Tree::wants(name) {
            tree.add_text(name, *text);
        } else {
            tree.add(*name);
        }
    }
    tree
}

#[test]
fn plans() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/recipes");
    let mut cases: Vec<PathBuf> = fs::read_dir(&dir)
        .expect("the cases")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 20, "{cases:?}");
    for case in cases {
        let mut tree = Tree::default();
        add(&case.join("source"), "", 1, &mut tree);
        let name = case.file_name().expect("a name").display().to_string();
        let made = plan(&tree, &Bases::default()).unwrap_or_else(|why| panic!("{name}: {why}"));
        let text = format!("{made}\nignore:\n{}", made.ignore);
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(&case);
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("plan", text, &name));
    }
}

#[test]
fn base_images_are_as_configured() {
    let mut bases = Bases::default();
    bases.set(Base::Run, "mirror.example/run:1").expect("a name");
    let go = tree(&[("go.mod", "module a.example/x\n"), ("main.go", "package main\n")]);
    let made = plan(&go, &bases).expect("a plan");
    assert_eq!(
        made.bases,
        ["docker.io/library/golang:1-trixie", "mirror.example/run:1"]
    );
    assert!(made.dockerfile.contains("\nFROM mirror.example/run:1\n"), "{made}");
}

#[test]
fn what_is_refused_says_what_to_add() {
    let flask = "from flask import Flask\napp = Flask(__name__)\n";
    let api = "import fastapi\napp = fastapi.FastAPI()\n";
    let start = r#"{"scripts": {"start": "x"}}"#;
    for (files, told) in [
        (&[][..], "add a Dockerfile, or one of requirements.txt"),
        (&[("notes.txt", "")], "add a Dockerfile, or one of requirements.txt"),
        (
            &[("Procfile", "web: x\n")],
            "add a Dockerfile, or one of requirements.txt",
        ),
        (
            &[
                ("go.mod", "module x\n"),
                ("main.go", "package main\n"),
                ("package.json", start),
            ],
            "may be Node (it has package.json) or Go (it has go.mod): add a Dockerfile, or a Procfile",
        ),
        (
            &[("go.mod", "module x\n"), ("Cargo.toml", ""), ("Procfile", "web: ./x\n")],
            "may be Go (it has go.mod) or Rust (it has Cargo.toml)",
        ),
        (
            &[("main.py", ""), ("Procfile", "worker: x\n")],
            "no line \"web: COMMAND\"",
        ),
        (
            &[("requirements.txt", "flask\n")],
            "detected by requirements.txt, but not what to run: add main.py or app.py",
        ),
        (
            &[("requirements.txt", "flask\n"), ("main.py", flask)],
            "main.py makes app by flask, and no server for it is required; add gunicorn",
        ),
        (
            &[("requirements.txt", "fastapi\ngunicorn\n"), ("main.py", api)],
            "main.py makes app by fastapi, and no server for it is required; add uvicorn",
        ),
        (
            &[("requirements.txt", "django\n"), ("manage.py", ""), ("s/wsgi.py", "")],
            "s/wsgi.py needs a server; add gunicorn",
        ),
        (
            &[("Pipfile", ""), ("main.py", "")],
            "Pipfile: a program whose packages pipenv knows",
        ),
        (&[("pyproject.toml", "[project\n")], "pyproject.toml cannot be read"),
        (
            &[
                ("pyproject.toml", ""),
                ("uv.lock", ""),
                ("poetry.lock", ""),
                ("main.py", ""),
            ],
            "the source has uv.lock and poetry.lock",
        ),
        (&[("package.json", "{")], "package.json cannot be read"),
        (
            &[("package.json", "[]")],
            "package.json cannot be read: it is no object",
        ),
        (&[("package.json", "{}"), ("index.html", "")], "add a script \"start\""),
        (
            &[("package.json", r#"{"main": "absent.js"}"#)],
            "add a script \"start\"",
        ),
        (
            &[
                (
                    "package.json",
                    r#"{"packageManager": "pnpm@$(id)", "scripts": {"start": "x"}}"#,
                ),
                ("pnpm-lock.yaml", ""),
            ],
            "package.json: the name \"$(id)\" does not fit",
        ),
        (
            &[("package.json", start), ("yarn.lock", ""), ("package-lock.json", "")],
            "the source has package-lock.json and yarn.lock",
        ),
        (
            &[("go.mod", "module x\n")],
            "add a file of package main to the root, or cmd/NAME/main.go",
        ),
        (
            &[("go.mod", "module x\n"), ("cmd/a/main.go", ""), ("cmd/b/main.go", "")],
            "one of several programs (a, b)",
        ),
        (
            &[("go.mod", "module a b\n"), ("x.go", "package main\n")],
            "go.mod: the name \"a b\" does not fit",
        ),
        (
            &[("Cargo.toml", "[workspace]\n")],
            "a workspace without a package of its own",
        ),
        (&[("Cargo.toml", "[package]\nname = \"x\"\n")], "add src/main.rs"),
        (
            &[
                ("Cargo.toml", "[package]\nname = \"x\"\n"),
                ("src/bin/a.rs", ""),
                ("src/bin/b.rs", ""),
            ],
            "there are a, b; name one as default-run",
        ),
        (
            &[("pom.xml", "<modules><module>a</module></modules>")],
            "pom.xml: a build of several modules",
        ),
        (
            &[("pom.xml", "<packaging>war</packaging>")],
            "an archive for an application server",
        ),
        (
            &[("build.gradle", ""), ("settings.gradle", "include 'a'\n")],
            "settings.gradle: a build of several modules",
        ),
        (
            &[("build.gradle", ""), ("pom.xml", "")],
            "the source has pom.xml and build.gradle",
        ),
        (&[("Gemfile", "gem 'puma'\n")], "add config.ru"),
        (
            &[("Gemfile", "gem 'rack'\n"), ("config.ru", "")],
            "add puma to the Gemfile",
        ),
        (
            &[("a.csproj", ""), ("b.csproj", "")],
            "a.csproj: a program beside another (b.csproj)",
        ),
        (&[("a.sln", ""), ("a/a.csproj", "")], "a.sln: a solution"),
        (&[("a b.csproj", "")], "the name \"a b\" does not fit"),
        (
            &[("project.toml", ""), ("main.py", "")],
            "project.toml: a project of buildpacks",
        ),
    ] {
        let said = match plan(&tree(files), &Bases::default()) {
            Err(why) => why.to_string(),
            Ok(made) => panic!("{files:?}: {made}"),
        };
        assert!(said.contains(told), "{files:?}: no {told:?} in {said}");
        let adds = ["add ", "remove ", "give ", "change ", "cannot be read"];
        assert!(
            adds.iter().any(|word| said.contains(word)),
            "{said} says not what to do"
        );
    }
}

/// Text that would do harm where it is taken as it is.
fn harm() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "HARM;", "\n", "\r", "\"", "'", "\\", "$", "$(id)", "`", " ", "RUN ", "]", "[", "/", "a", ".", "-", "#",
        "\u{2028}",
    ];
    proptest::collection::vec(proptest::sample::select(PIECES), 0..12).prop_map(|parts| parts.concat() + "HARM;x")
}

/// Sources of every language, with a text wherever they name something.
fn sources(harm: &str) -> Vec<Tree> {
    let quoted = json!(harm).to_string();
    let go = format!("module example.com/{harm}\n");
    let cargo = format!("[package]\nname = {quoted}\ndefault-run = {quoted}\n[[bin]]\nname = {quoted}\n");
    let package =
        json!({"name": harm, "main": harm, "engines": {"node": harm}, "dependencies": {harm: harm}}).to_string();
    let scripts = json!({"scripts": {"start": harm, "build": harm, harm: harm}}).to_string();
    let managed = json!({"packageManager": format!("pnpm@{harm}"), "scripts": {"start": "x"}}).to_string();
    let project = format!("[project]\nname = {quoted}\ndependencies = [{quoted}, 'gunicorn']\n");
    let assembly = format!("<AssemblyName>{harm}</AssemblyName>");
    let (wsgi, command, script) = (
        format!("{harm}/wsgi.py"),
        format!("cmd/{harm}/main.go"),
        format!("src/bin/{harm}.rs"),
    );
    let csproj = format!("{harm}.csproj");
    let gemfile = format!("gem 'puma', '{harm}'\n");
    let procfile = format!("web: {harm}\n");
    let mut all = vec![
        tree(&[("go.mod", &go), ("main.go", "package main\n"), ("go.sum", harm)]),
        tree(&[("go.mod", "module x\n"), (&command, "")]),
        tree(&[("Cargo.toml", &cargo), ("Cargo.lock", harm)]),
        tree(&[("Cargo.toml", "[package]\nname = 'x'\n"), (&script, "")]),
        tree(&[("package.json", &package), (harm, ""), ("package-lock.json", "")]),
        tree(&[("package.json", &scripts), ("yarn.lock", "")]),
        tree(&[("package.json", &managed), ("pnpm-lock.yaml", "")]),
        tree(&[("pyproject.toml", &project), ("uv.lock", ""), ("main.py", "app = 1\n")]),
        tree(&[("requirements.txt", harm), ("main.py", harm)]),
        tree(&[("requirements.txt", "gunicorn\n"), ("manage.py", ""), (&wsgi, "")]),
        tree(&[(&csproj, "")]),
        tree(&[("a.csproj", &assembly)]),
        tree(&[("Gemfile", &gemfile), ("config.ru", harm)]),
        tree(&[("pom.xml", harm)]),
        tree(&[("build.gradle", harm), ("settings.gradle", harm)]),
        tree(&[("composer.json", harm), (harm, "")]),
        tree(&[("index.html", harm), (harm, "")]),
    ];
    let with_procfile = all.clone().into_iter().map(|mut tree| {
        tree.add_text("Procfile", procfile.as_str());
        tree
    });
    all.extend(with_procfile.collect::<Vec<_>>());
    all
}

proptest! {
    #[test]
    fn no_text_of_a_source_is_an_instruction(harm in harm()) {
        const INSTRUCTIONS: [&str; 8] = ["#", "FROM", "WORKDIR", "ENV", "RUN", "COPY", "USER", "ENTRYPOINT"];
        let mut made = 0;
        for source in sources(&harm) {
            let Ok(plan) = plan(&source, &Bases::default()) else { continue };
            made += 1;
            for line in plan.dockerfile.lines() {
                let (word, rest) = line.split_once(' ').expect("an instruction");
                prop_assert!(INSTRUCTIONS.contains(&word), "{}", plan.dockerfile);
                if word != "ENTRYPOINT" {
                    prop_assert!(!rest.contains("HARM;"), "{}", plan.dockerfile);
                    continue;
                }
                let words: Vec<String> = serde_json::from_str(rest).expect("a list of words");
                prop_assert_eq!(&words, &plan.entrypoint);
                // A line of shell has it only when it is the Procfile's own.
                if words[0] == "/bin/sh" && words[2].contains("HARM;") {
                    let line = format!("web: {harm}");
                    let line = line.lines().next().expect("a line");
                    prop_assert_eq!(Some(words[2].as_str()), line.strip_prefix("web:").map(str::trim));
                }
            }
            let entrypoints = plan.dockerfile.lines().filter(|line| line.starts_with("ENTRYPOINT ")).count();
            prop_assert_eq!(entrypoints, 1);
        }
        prop_assert!(made > 5, "only {made} plans");
    }
}
