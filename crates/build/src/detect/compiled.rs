//! Go, Rust and .NET: a program is compiled in one stage and run in another.

use toml::Value;

use super::{
    Draft, Entry, Given, Language, Refusal,
    base::Base,
    dockerfile::{Dockerfile, fits},
};

fn checked<'n>(file: &str, name: &'n str) -> Result<&'n str, Refusal> {
    if fits(name) {
        Ok(name)
    } else {
        Err(Refusal::Name {
            file: file.to_owned(),
            name: name.chars().take(100).collect(),
        })
    }
}

/// The last part of a module's path that is no version.
fn module(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.trim().strip_prefix("module "))?;
    let path = path.split("//").next().unwrap_or(path).trim().trim_matches('"');
    let is_version =
        |part: &&str| part.len() > 1 && part.starts_with('v') && part[1..].bytes().all(|b| b.is_ascii_digit());
    path.rsplit('/').find(|part| !is_version(part))
}

/// The package that is the program, and its name.
fn go_package(given: Given<'_>) -> Result<(String, String), Refusal> {
    let tree = given.tree;
    let is_program = |name: &&str| {
        name.strip_suffix(".go").is_some_and(|stem| !stem.ends_with("_test"))
            && tree.text(name).lines().any(|line| line.trim_end() == "package main")
    };
    if tree.of_root().any(|name| is_program(&name)) {
        let name = module(tree.text("go.mod")).ok_or_else(|| Refusal::Syntax {
            file: "go.mod".to_owned(),
            why: "it has no line module".to_owned(),
        })?;
        return Ok((".".to_owned(), checked("go.mod", name)?.to_owned()));
    }
    let below: Vec<&str> = tree
        .files
        .iter()
        .filter_map(|file| file.strip_prefix("cmd/")?.strip_suffix("/main.go"))
        .collect();
    match below[..] {
        [one] => {
            let name = checked("cmd", one)?;
            Ok((format!("./cmd/{name}"), name.to_owned()))
        }
        [] => Err(given.no_entrypoint(
            Language::Go,
            "add a file of package main to the root, or cmd/NAME/main.go",
        )),
        _ => Err(Refusal::NotServed {
            file: "cmd".to_owned(),
            what: format!("one of several programs ({})", below.join(", ")),
            instead: "add a Dockerfile".to_owned(),
        }),
    }
}

pub(super) fn go(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let (package, name) = go_package(given)?;
    let mut notes = Vec::new();
    let program = format!("/usr/local/bin/{name}");
    let mut file = Dockerfile::begin();
    file.stage(given.bases.of(Base::Go), "build")
        .work_in("/src")
        .env("CGO_ENABLED=0 GOTOOLCHAIN=local");
    if tree.has("vendor/modules.txt") {
        notes.push("packages out of vendor".to_owned());
    } else if tree.has("go.sum") {
        file.copy(&["go.mod", "go.sum"]).run(&["go", "mod", "download"]);
        notes.push("packages by go, because of go.sum".to_owned());
    }
    file.copy_all()
        .run(&[
            "go",
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-o",
            "/out/program",
            &package,
        ])
        .last(given.bases.of(Base::Run))
        .work_in("/app")
        // Templates and the like.
        .copy_all_owned()
        .copy_from("build", "/out/program", &program);
    let because = if package == "." {
        "the root has package main, and go.mod its name".to_owned()
    } else {
        format!("there is cmd/{name}/main.go")
    };
    Ok(Draft {
        dockerfile: file,
        entry: given.procfile().unwrap_or_else(|| Entry::program(&[&program], because)),
        notes,
        ignore: &[],
    })
}

/// The programs of a package, and the one that is started.
fn rust_programs(given: Given<'_>, manifest: &toml::Table) -> Result<(Vec<String>, Option<String>), Refusal> {
    let tree = given.tree;
    let Some(package) = manifest.get("package").and_then(Value::as_table) else {
        return Err(Refusal::NotServed {
            file: "Cargo.toml".to_owned(),
            what: "a workspace without a package of its own".to_owned(),
            instead: "give the directory of one package, or add a Dockerfile".to_owned(),
        });
    };
    let text = |field: &str| package.get(field).and_then(Value::as_str);
    let mut names: Vec<&str> = Vec::new();
    let listed = manifest.get("bin").and_then(Value::as_array).into_iter().flatten();
    names.extend(listed.filter_map(|bin| bin.get("name")?.as_str()));
    let has_main = tree.has("src/main.rs");
    let main_is_listed = manifest.get("bin").and_then(Value::as_array).is_some_and(|bins| {
        bins.iter()
            .any(|bin| bin.get("path").and_then(Value::as_str) == Some("src/main.rs"))
    });
    if has_main && !main_is_listed {
        names.extend(text("name"));
    }
    let below = tree.files.iter().filter_map(|file| file.strip_prefix("src/bin/"));
    names.extend(below.filter_map(|file| {
        let name = file.strip_suffix("/main.rs").or_else(|| file.strip_suffix(".rs"))?;
        (!name.contains('/')).then_some(name)
    }));
    names.sort_unstable();
    names.dedup();
    let names = names
        .into_iter()
        .map(|name| checked("Cargo.toml", name).map(str::to_owned))
        .collect::<Result<Vec<_>, _>>()?;
    let started = match (text("default-run"), &names[..]) {
        (Some(named), _) if names.iter().any(|name| name == named) => Some(named.to_owned()),
        (Some(_) | None, [one]) => Some(one.clone()),
        (Some(_) | None, _) => None,
    };
    Ok((names, started))
}

pub(super) fn rust(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let manifest: toml::Table = tree
        .text("Cargo.toml")
        .parse()
        .map_err(|why: toml::de::Error| Refusal::Syntax {
            file: "Cargo.toml".to_owned(),
            why: why.message().to_owned(),
        })?;
    let (names, started) = rust_programs(given, &manifest)?;
    let entry = match (given.procfile(), started) {
        (Some(entry), _) if !names.is_empty() => entry,
        (None, Some(name)) => {
            let because = "it is the package's program, by Cargo.toml and the files in src";
            Entry::program(&[&format!("/usr/local/bin/{name}")], because)
        }
        (Some(_) | None, _) if names.is_empty() => {
            return Err(given.no_entrypoint(Language::Rust, "add src/main.rs"));
        }
        (Some(_) | None, _) => {
            let missing = format!("there are {}; name one as default-run in Cargo.toml", names.join(", "));
            return Err(given.no_entrypoint(Language::Rust, missing));
        }
    };
    let mut notes = Vec::new();
    let mut file = Dockerfile::begin();
    file.stage(given.bases.of(Base::Rust), "build").work_in("/src");
    let is_locked = tree.has("Cargo.lock");
    let lock: &[&str] = if is_locked { &["--locked"] } else { &[] };
    // A package of one program: its dependencies are fetched before its sources are there.
    let is_plain = ["bin", "lib", "workspace"]
        .iter()
        .all(|table| !manifest.contains_key(*table))
        && !tree.has("build.rs")
        && !tree.is_below(".cargo")
        && names.len() == 1;
    if !is_locked {
        notes.push("there is no Cargo.lock, so that versions may change".to_owned());
    } else if is_plain {
        file.copy(&["Cargo.toml", "Cargo.lock"])
            .shell("mkdir src && echo 'fn main() {}' > src/main.rs && cargo fetch --locked && rm -r src");
    }
    file.copy_all()
        .run(&[&["cargo", "build", "--release"][..], lock].concat())
        .last(given.bases.of(Base::Run))
        .work_in("/app")
        .copy_all_owned();
    for name in &names {
        file.copy_from(
            "build",
            &format!("/src/target/release/{name}"),
            &format!("/usr/local/bin/{name}"),
        );
    }
    Ok(Draft {
        dockerfile: file,
        entry,
        notes,
        ignore: &["target"],
    })
}

/// What stands in the first element of this name.
fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once("</").map(|(value, _)| value.trim())
}

pub(super) fn dot_net(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let projects: Vec<&str> = tree.of_root().filter(|name| name.ends_with(".csproj")).collect();
    let project = match projects[..] {
        [one] => one,
        [] => {
            return Err(Refusal::NotServed {
                file: given.because.to_owned(),
                what: "a solution".to_owned(),
                instead: "give the directory of one .csproj, or add a Dockerfile".to_owned(),
            });
        }
        [first, second, ..] => {
            return Err(Refusal::NotServed {
                file: first.to_owned(),
                what: format!("a program beside another ({second})"),
                instead: "give the directory of one .csproj, or add a Dockerfile".to_owned(),
            });
        }
    };
    let stem = project.trim_end_matches(".csproj");
    checked(project, stem)?;
    let name = element(tree.text(project), "AssemblyName").unwrap_or(stem);
    let name = checked(project, name)?;
    let mut file = Dockerfile::begin();
    file.stage(given.bases.of(Base::DotNetSdk), "build").work_in("/src");
    let mut wanted = vec![project];
    wanted.extend(
        [
            "nuget.config",
            "NuGet.config",
            "packages.lock.json",
            "Directory.Build.props",
            "Directory.Packages.props",
            "global.json",
        ]
        .into_iter()
        .filter(|name| tree.has(name)),
    );
    file.copy(&wanted)
        .run(&["dotnet", "restore", project])
        .copy_all()
        .run(&[
            "dotnet",
            "publish",
            project,
            "--no-restore",
            "--configuration",
            "Release",
            "--output",
            "/out",
        ])
        .last(given.bases.of(Base::DotNet))
        .work_in("/app")
        // A program for an older .NET runs too.
        .env("DOTNET_ROLL_FORWARD=Major")
        .copy_from_owned("build", "/out", "./");
    let line = format!("ASPNETCORE_URLS=http://0.0.0.0:\"$PORT\" exec dotnet {name}.dll");
    Ok(Draft {
        dockerfile: file,
        entry: given
            .procfile()
            .unwrap_or_else(|| Entry::shell(&line, format!("it is what {project} makes"))),
        notes: Vec::new(),
        ignore: &["bin", "obj"],
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Tree, *};

    #[test]
    fn the_name_of_a_module() {
        for (text, name) in [
            ("module example.com/a/hello\n\ngo 1.24\n", Some("hello")),
            ("// c\nmodule \"x.org/app/v2\" // d\n", Some("app")),
            ("module v2\n", None),
            ("go 1.24\n", None),
        ] {
            assert_eq!(module(text), name, "{text}");
        }
    }

    #[test]
    fn elements() {
        let text = "<Project><PropertyGroup>\n<AssemblyName> My.App </AssemblyName></PropertyGroup></Project>";
        assert_eq!(element(text, "AssemblyName"), Some("My.App"));
        assert_eq!(element(text, "RootNamespace"), None);
        assert!(!Tree::wants("a/b.csproj") && Tree::wants("b.csproj"));
    }
}
