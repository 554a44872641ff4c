//! Java: one runnable archive, by Maven or Gradle, by the source's own wrapper where it has one.

use super::{Draft, Entry, Given, Refusal, base::Base, dockerfile::Dockerfile};

/// The one archive that is meant to be run, of those that a build makes.
const TAKE_OF_MAVEN: &str = "mkdir /out && set -- $(ls target/*.jar | grep -v -e '-sources.jar$' -e '-javadoc.jar$' -e \
                             '-tests.jar$' -e '/original-') && if [ $# -ne 1 ]; then echo \"not one jar in target: $*\"; exit 1; fi && cp \"$1\" /out/app.jar";
const TAKE_OF_GRADLE: &str = "mkdir /out && set -- $(ls build/libs/*.jar | grep -v -e '-sources.jar$' -e '-javadoc.jar$' -e \
                              '-plain.jar$') && if [ $# -ne 1 ]; then echo \"not one jar in build/libs: $*\"; exit 1; fi && cp \"$1\" /out/app.jar";

fn several(file: &str) -> Refusal {
    Refusal::NotServed {
        file: file.to_owned(),
        what: "a build of several modules".to_owned(),
        instead: "give the directory of one module, or add a Dockerfile".to_owned(),
    }
}

fn maven(given: Given<'_>, file: &mut Dockerfile) -> Result<String, Refusal> {
    let tree = given.tree;
    let pom = tree.text("pom.xml");
    if pom.contains("<modules>") {
        return Err(several("pom.xml"));
    }
    if pom.contains("<packaging>war</packaging>") {
        return Err(Refusal::NotServed {
            file: "pom.xml".to_owned(),
            what: "an archive for an application server (war)".to_owned(),
            instead: "package a jar, or add a Dockerfile".to_owned(),
        });
    }
    let has_wrapper = tree.has("mvnw");
    let (base, program): (_, &[&str]) = if has_wrapper {
        (Base::Jdk, &["/bin/sh", "./mvnw", "--batch-mode"])
    } else {
        (Base::Maven, &["mvn", "--batch-mode"])
    };
    file.stage(given.bases.of(base), "build")
        .work_in("/src")
        .copy(&["pom.xml"]);
    if has_wrapper {
        file.copy(&["mvnw"]);
        if tree.is_below(".mvn") {
            file.copy_dir(".mvn");
        }
    }
    file.run(&[program, &["dependency:go-offline"]].concat())
        .copy_all()
        .run(&[program, &["package", "-DskipTests"]].concat());
    if given.web.is_none() {
        file.shell(TAKE_OF_MAVEN);
    }
    let by = if has_wrapper { "its own mvnw" } else { "Maven" };
    Ok(format!("built by {by}, because of pom.xml"))
}

fn gradle(given: Given<'_>, file: &mut Dockerfile) -> Result<String, Refusal> {
    let tree = given.tree;
    for settings in ["settings.gradle", "settings.gradle.kts"] {
        let mut lines = tree.text(settings).lines().map(str::trim_start);
        if lines.any(|line| line.starts_with("include ") || line.starts_with("include(")) {
            return Err(several(settings));
        }
    }
    let has_wrapper = tree.has("gradlew");
    let (base, program): (_, &[&str]) = if has_wrapper {
        (Base::Jdk, &["/bin/sh", "./gradlew", "--no-daemon"])
    } else {
        (Base::Gradle, &["gradle", "--no-daemon"])
    };
    let names = [
        "build.gradle",
        "build.gradle.kts",
        "settings.gradle",
        "settings.gradle.kts",
        "gradle.properties",
        "gradlew",
    ];
    let wanted: Vec<&str> = names.into_iter().filter(|name| tree.has(name)).collect();
    file.stage(given.bases.of(base), "build").work_in("/src").copy(&wanted);
    if tree.is_below("gradle") {
        file.copy_dir("gradle");
    }
    file.run(&[program, &["dependencies"]].concat())
        .copy_all()
        .run(&[program, &["assemble"]].concat());
    if given.web.is_none() {
        file.shell(TAKE_OF_GRADLE);
    }
    let by = if has_wrapper { "its own gradlew" } else { "Gradle" };
    Ok(format!("built by {by}, because of {}", given.because))
}

pub(super) fn draft(given: Given<'_>) -> Result<Draft, Refusal> {
    let tree = given.tree;
    let builds: Vec<&str> = ["pom.xml", "build.gradle", "build.gradle.kts"]
        .into_iter()
        .filter(|name| tree.has(name))
        .collect();
    if let [first, second, ..] = builds[..] {
        return Err(Refusal::TwoLocks {
            first: first.to_owned(),
            second: second.to_owned(),
        });
    }
    let mut file = Dockerfile::begin();
    let note = if tree.has("pom.xml") {
        maven(given, &mut file)?
    } else {
        gradle(given, &mut file)?
    };
    file.last(given.bases.of(Base::Java)).work_in("/app");
    let entry = if let Some(entry) = given.procfile() {
        // It names an archive by its own path.
        file.copy_from_owned("build", "/src", "./");
        entry
    } else {
        file.copy_from("build", "/out/app.jar", "./app.jar");
        let line = "SERVER_PORT=\"$PORT\" QUARKUS_HTTP_PORT=\"$PORT\" exec java -jar app.jar";
        Entry::shell(line, "the build makes one jar")
    };
    Ok(Draft {
        dockerfile: file,
        entry,
        notes: vec![note],
        ignore: &["target", "build", ".gradle"],
    })
}
