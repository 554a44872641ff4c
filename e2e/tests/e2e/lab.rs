//! The tutorial's hands-on lab (`e2e/lab.sh`), deployed from source: word for word, but that its directory below /tmp is
//! the test's own, so that two of these run beside each other. `python:3.12-slim` is Debian's Python 3.11 here.

use std::{collections::BTreeMap, fs};

use homerun_e2e::{Client, User, Wheels};

const LAB: &str = include_str!("../../lab.sh");

/// The tasks in order, each as its commands: a line of comment begins one.
fn tasks() -> Vec<Vec<String>> {
    let paragraphs = LAB.split("\n\n").filter(|text| text.starts_with("# Task "));
    paragraphs
        .map(|text| {
            let mut commands: Vec<String> = Vec::new();
            for line in text.lines() {
                match commands.last_mut() {
                    Some(command) if !line.starts_with("# ") => {
                        command.push('\n');
                        command.push_str(line);
                    }
                    Some(_) | None => commands.push(line.to_owned()),
                }
            }
            commands
        })
        .collect()
}

fn mirror_python(user: &mut User) {
    let base = user.import_language("python");
    user.ok(&format!("homerun images mirror python:3.12-slim {base}"));
}

fn lab(client: Client) {
    let wheels = Wheels::serve().expect("an index");
    let mut user = User::with(&["--build-index", &format!("pip={}", wheels.url)], client);
    mirror_python(&mut user);
    // A test has nobody who says yes to the repository that the first deploy makes.
    user.ok("export CLOUDSDK_CORE_DISABLE_PROMPTS=1");
    let mut told = Vec::new();
    for task in tasks() {
        let mut of_task = String::new();
        for command in task {
            of_task.push_str(&user.ok(&command.replace("/tmp/cloud-run-lab", "$TMPDIR/cloud-run-lab")));
            of_task.push('\n');
        }
        told.push(of_task);
    }
    let told: [String; 6] = told.try_into().expect("six tasks");
    let [blue, green, canary, cutover, rollback, clean] = &told;
    for (told, parts) in [
        (
            blue,
            &[
                "\"color\": \"blue\"",
                "\"version\": \"1.0.0\"",
                "Service URL: http://color-api-",
            ][..],
        ),
        (
            green,
            &[
                "\"color\": \"green\"",
                "new and improved!",
                "Green URL: http://green---color-api-",
            ],
        ),
        (
            canary,
            &["Blue: color-api-00001-", "Green: color-api-00002-", "percent: 90"],
        ),
        (
            cutover,
            &["\"color\": \"green\"", "latestRevision: true", "percent: 100"],
        ),
        (
            rollback,
            &["\"color\": \"blue\"", "revisionName: color-api-00001-", "percent: 100"],
        ),
        (clean, &["Cleanup complete."]),
    ] {
        for part in parts {
            assert!(told.contains(part), "no {part:?} in\n{told}");
        }
    }
    for (told, other) in [
        (blue, "green\","),
        (green, "\"blue\""),
        (cutover, "\"blue\""),
        (rollback, "\"green\""),
    ] {
        assert!(!told.contains(other), "{other:?} in\n{told}");
    }
    let counts: BTreeMap<&str, u32> = canary
        .lines()
        .filter_map(|line| {
            let (count, color) = line.trim().split_once(' ')?;
            Some((color, count.parse().ok()?))
        })
        .collect();
    assert_eq!(counts.values().sum::<u32>(), 20, "{canary}");
    // Fewer come once in ten million runs.
    assert!(counts["blue"] >= 10, "{canary}");
    assert_eq!(
        user.ok("gcloud run services list --format='value(metadata.name)' 2>/dev/null"),
        ""
    );
    // REGION is the lab's by now.
    let log = user
        .ok("gcloud builds log --region=$REGION $(gcloud builds list --region=$REGION --limit=1 --format='value(id)')");
    assert!(log.contains(&format!("package index of pip: {}/", wheels.url)), "{log}");
    user.leaves();
}

#[test]
fn the_lab_with_googles_gcloud() {
    lab(Client::Google);
}

#[test]
fn the_lab_with_ours() {
    lab(Client::Homerun);
}

#[test]
fn pip_without_an_index_is_told_of_the_flag() {
    let mut user = User::of_homerun();
    mirror_python(&mut user);
    let dir = user.homerun.root().join("home/app");
    fs::create_dir_all(&dir).expect("made");
    fs::write(
        dir.join("Dockerfile"),
        "FROM python:3.12-slim\nRUN pip install --retries 0 flask\n",
    )
    .expect("written");
    let said = user.refused("gcloud run deploy app --source=app $REGION --quiet");
    for part in [
        "No matching distribution found for flask",
        "homerun up --build-index pip=",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    user.leaves();
}
