//! From source to an image and to a service, by Google's own gcloud and a real buildah.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use homerun_e2e::{Client, User};

pub(crate) const PLACE: &str = "us-central1-docker.pkg.dev/my-project/built";

/// A Homerun with a base image, for Google's client.
pub(crate) fn user(flags: &[&str]) -> (User, String) {
    let mut user = User::with(flags, Client::Google);
    let base = user.import_base();
    (user, base)
}

/// A directory with a Dockerfile, at `~/NAME`.
pub(crate) fn source(user: &User, name: &str, dockerfile: &str) -> PathBuf {
    let dir = user.homerun.root().join("home").join(name);
    fs::create_dir_all(&dir).expect("made");
    fs::write(dir.join("Dockerfile"), dockerfile).expect("written");
    dir
}

pub(crate) fn log_of(user: &mut User, which: &str) -> String {
    user.ok(&format!(
        "gcloud builds log $(gcloud builds list {which} --limit=1 --format='value(id)') {which}"
    ))
}

#[test]
fn a_source_is_deployed_and_deployed_again_from_the_cache() {
    let (mut user, base) = user(&[]);
    let dir = source(
        &user,
        "app",
        &format!("FROM {base}\nRUN echo slow step > /slow\nCOPY name /etc/name\nENTRYPOINT [\"/probe\"]\n"),
    );
    fs::write(dir.join("name"), "first").expect("written");
    let deploy = "gcloud run deploy app --source=app $REGION --allow-unauthenticated --quiet";
    user.ok(deploy);
    let url = user.describe("app", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/name")), "first");
    let built = user.ok("gcloud builds list $REGION --limit=1 --format='value(status,tags,results.images[0].digest)'");
    let image = user.describe("app", "value(spec.template.spec.containers[0].image)");
    let (place, digest) = image.trim().split_once('@').expect("a digest");
    assert_eq!(
        place,
        "us-central1-docker.pkg.dev/my-project/cloud-run-source-deploy/app"
    );
    assert_eq!(built, format!("SUCCESS\tservice_app\t{digest}"));

    fs::write(dir.join("name"), "second").expect("written");
    user.ok(deploy);
    assert_eq!(user.get(&format!("{url}/name")), "second");
    let log = log_of(&mut user, "$REGION");
    let cached = log
        .split("RUN echo slow step")
        .nth(1)
        .expect("that step")
        .lines()
        .nth(1);
    assert!(cached.is_some_and(|line| line.starts_with("--> Using cache")), "{log}");
    let revisions = user.ok("gcloud run revisions list --service=app $REGION --format='value(name)'");
    assert_eq!(revisions.lines().count(), 2);
    user.leaves();
}

#[test]
fn a_submitted_build_is_watched_listed_and_kept() {
    let (mut user, base) = user(&[]);
    source(&user, "app", &format!("FROM {base}\nRUN echo it says this; id -u\n"));
    let said = user.ok(&format!("gcloud builds submit app --tag={PLACE}/app:v1"));
    for line in ["FETCHSOURCE", "it says this", "PUSH", "DONE"] {
        assert!(said.lines().any(|of| of == line), "no line {line} in {said}");
    }
    let listed = user.ok("gcloud builds list --format='value(status,images,source.storageSource.bucket)'");
    assert_eq!(listed, format!("SUCCESS\t{PLACE}/app:v1\tmy-project_cloudbuild"));
    let tags = user.ok(&format!(
        "gcloud artifacts docker tags list {PLACE} --format='value(tag)'"
    ));
    assert_eq!(tags.lines().last(), Some("v1"), "{tags}");
    user.homerun.kill_and_restart().expect("starts after a kill");
    user.session = homerun_e2e::Session::new(&user.homerun, Client::Google).expect("a shell");
    assert!(log_of(&mut user, "").contains("it says this"));
    let absent = "0b1f2e3d-0000-4000-8000-000000000001";
    let said = user.refused(&format!("gcloud builds describe {absent}"));
    assert!(said.contains(absent), "{said}");
    user.leaves();
}

/// What a build step must not be able to do; each line that succeeds fails the build with its own words.
const PRISON: &str = r#"
refused() { echo "reached: $1"; exit 1; }
[ "$(ls /sys/class/net)" = lo ] || refused "another link than lo"
for address in 127.0.0.1 MACHINE; do
    (exec 3<>/dev/tcp/$address/API) 2>/dev/null && refused "the API port at $address"
done
(exec 3<>/dev/tcp/169.254.169.254/80) 2>/dev/null && refused "the metadata server"
exec 3<>/dev/tcp/127.0.0.1/3128 || refused "no relay, so that nothing is told of it"
printf 'GET http://us-central1-docker.pkg.dev/v2/ HTTP/1.0\r\n\r\n' >&3
IFS= read -r answer <&3
[[ $answer == *407* ]] || refused "the relay of base images: $answer"
[ -e DATA ] && refused "the data directory"
(cat /proc/1/environ >/dev/null) 2>/dev/null && refused "the builder's environment"
ls /proc/1/root/ 2>/dev/null && refused "the builder's root"
[ "$(id -u)" = 0 ] || refused "another user than root of its own"
for kind in user mount net pid; do
    said=$(unshare --$kind ls / 2>&1) && refused "a $kind namespace of its own"
    [[ $said == *"unshare failed"* ]] || refused "no answer about a $kind namespace: $said"
done
while read -r key value; do
    case $key in
    CapEff: | CapBnd:) [ "$value" = 00000000800005fb ] || refused "other privileges: $key $value" ;;
    NoNewPrivs:) [ "$value" = 1 ] || refused "new privileges" ;;
    esac
done </proc/self/status
echo nothing was reached
"#;

#[test]
fn a_build_step_finds_only_its_own_loopback() {
    let (mut user, base) = user(&[]);
    let machine = user
        .ok("hostname -I")
        .split_whitespace()
        .next()
        .unwrap_or("127.0.0.2")
        .to_owned();
    let api = user.homerun.api().port();
    user.ok(&format!("(exec 3<>/dev/tcp/127.0.0.1/{api})"));
    let data = user.ok("echo $DATA_DIR");
    let script = PRISON
        .replace("MACHINE", &machine)
        .replace("API", &api.to_string())
        .replace("DATA", &data);
    let dir = source(
        &user,
        "prison",
        &format!("FROM {base}\nCOPY script /script\nRUN [\"/bin/sh\", \"/script\"]\n"),
    );
    fs::write(dir.join("script"), script).expect("written");
    let said = user.ok(&format!("gcloud builds submit prison --tag={PLACE}/prison"));
    assert!(said.contains("nothing was reached"), "{said}");
    user.leaves();
}

#[test]
fn failures_name_their_step_and_leave_nothing() {
    let (mut user, base) = user(&[]);
    let good = source(
        &user,
        "app",
        &format!("FROM {base}\nCOPY name /etc/name\nENTRYPOINT [\"/probe\"]\n"),
    );
    fs::write(good.join("name"), "good").expect("written");
    let deploy = "gcloud run deploy app --source=app $REGION --allow-unauthenticated --quiet";
    user.ok(deploy);
    let url = user.describe("app", "value(status.url)").trim().to_owned();
    for (dockerfile, told) in [
        (
            format!("FROM {base}\nRUN echo out of luck; exit 3\n"),
            &[
                "STEP 2/2: RUN echo out of luck; exit 3",
                "\nout of luck\n",
                "exit status 3",
            ][..],
        ),
        (format!("FROM {base}\nRUNN x\n"), &["RUNN", "Unknown instruction"]),
        (
            "FROM us-central1-docker.pkg.dev/my-project/e2e/absent:v1\n".to_owned(),
            &["us-central1-docker.pkg.dev/my-project/e2e/absent:v1 not found"],
        ),
        (format!("FROM {base}\nCOPY absent /x\n"), &["STEP 2/2: COPY absent /x"]),
    ] {
        fs::write(good.join("Dockerfile"), &dockerfile).expect("written");
        let said = user.refused(deploy);
        for part in told {
            assert!(said.contains(part), "no {part:?} in\n{said}");
        }
    }
    fs::remove_file(good.join("Dockerfile")).expect("removed");
    let said = user.refused(deploy);
    assert!(said.contains("no file in its root tells how to build it"), "{said}");
    assert_eq!(user.get(&format!("{url}/name")), "good");
    let images = user.ok(
        "gcloud artifacts docker images list us-central1-docker.pkg.dev/my-project/cloud-run-source-deploy \
         --format='value(package)'",
    );
    assert_eq!(
        images.lines().filter(|line| line.contains("/app")).count(),
        1,
        "{images}"
    );
    let stati = user.ok("gcloud builds list $REGION --format='value(status)'");
    assert_eq!(stati, "FAILURE\nFAILURE\nFAILURE\nFAILURE\nFAILURE\nSUCCESS");
    user.leaves();
}

/// Waits until a build's log has a line.
pub(crate) fn says(user: &User, line: &str) {
    let logs = user.homerun.root().join("data/builds/log");
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let said = fs::read_dir(&logs).into_iter().flatten().flatten().any(|entry| {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            text.lines().any(|of| of == line)
        });
        if said {
            return;
        }
        assert!(Instant::now() < deadline, "no log says {line}:\n{}", user.homerun.log());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_build_ends_when_it_is_cancelled_and_at_its_limit() {
    let (mut user, base) = user(&[]);
    source(
        &user,
        "slow",
        &format!("FROM {base}\nRUN echo it begins; sleep 600 & sleep 601\n"),
    );
    let submit = format!("gcloud builds submit slow --tag={PLACE}/slow");
    user.ok(&format!("BUILD=$({submit} --async --format='value(id)')"));
    says(&user, "it begins");
    user.ok("gcloud builds cancel $BUILD");
    let status = "gcloud builds describe $BUILD --format='value(status)'";
    assert_eq!(user.ok(status), "CANCELLED");
    let said = user.refused("gcloud builds cancel $BUILD");
    assert!(said.contains("has ended already: CANCELLED"), "{said}");
    let said = user.refused(&format!("{submit} --timeout=4s"));
    assert!(said.contains("longer than its limit of 4 seconds"), "{said}");
    let left = user.ok("ls $DATA_DIR/builds/work | wc -l");
    assert_eq!(left, "0");
    let named = user.ok(&format!(
        "gcloud artifacts docker images list {PLACE} --format='value(package)' 2>/dev/null"
    ));
    assert_eq!(named, "", "nothing of a build that did not end well has a name");
    user.leaves();
}

#[test]
fn a_build_that_a_crash_broke_off_begins_again() {
    let (mut user, base) = user(&[]);
    source(&user, "slow", &format!("FROM {base}\nRUN echo it begins; sleep 6\n"));
    user.ok(&format!("gcloud builds submit slow --tag={PLACE}/slow --async"));
    says(&user, "it begins");
    user.homerun.kill_and_restart().expect("starts after a kill");
    user.session = homerun_e2e::Session::new(&user.homerun, Client::Google).expect("a shell");
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match user.ok("gcloud builds list --format='value(status)'").as_str() {
            "SUCCESS" => break,
            "QUEUED" | "WORKING" => assert!(Instant::now() < deadline, "{}", user.homerun.log()),
            other => panic!("{other}\n{}", user.homerun.log()),
        }
    }
    user.leaves();
}

#[test]
fn a_configuration_names_arguments_and_stages() {
    let (mut user, base) = user(&[]);
    let dir = source(
        &user,
        "app",
        &format!(
            "ARG BASE\nFROM $BASE AS first\nARG GREETING=none\nRUN echo \"$GREETING\" > /greeting\n\
             FROM {base} AS second\nCOPY --from=first /greeting /etc/name\nENTRYPOINT [\"/probe\"]\n\
             FROM second AS third\nRUN exit 1\n"
        ),
    );
    let config = |steps: &str| format!("steps:\n{steps}images: ['{PLACE}/app:$_TAG']\nsubstitutions: {{_TAG: v7}}\n");
    let build = format!(
        "- name: gcr.io/cloud-builders/docker\n  args: [build, -t, '{PLACE}/app:$_TAG', --build-arg, 'GREETING=hello', \
         --build-arg=BASE={base}, --target=second, .]\n"
    );
    fs::write(dir.join("cloudbuild.yaml"), config(&build)).expect("written");
    user.ok("gcloud builds submit app --config=app/cloudbuild.yaml");
    let url = user.deploy("app", &format!("--image={PLACE}/app:v7"));
    assert_eq!(user.get(&format!("{url}/name")).trim(), "hello");

    for (steps, told) in [
        (
            "- name: gcr.io/cloud-builders/npm\n  args: [test]\n".to_owned(),
            "steps[0].name",
        ),
        (format!("{build}  env: [A=b]\n"), "steps[0].env"),
        (build.replace("--target=second", "--privileged"), "--privileged"),
        (format!("{build}{build}"), "steps[1].args"),
        (build.replace("$_TAG", "$_NO"), "$_NO"),
        (build.replace("/app:$_TAG", "/other"), "no step makes"),
    ] {
        fs::write(dir.join("cloudbuild.yaml"), config(&steps)).expect("written");
        let said = user.refused("gcloud builds submit app --config=app/cloudbuild.yaml");
        assert!(said.contains(told), "no {told:?} in {said}");
    }
    assert_eq!(
        user.ok("gcloud builds list --format='value(status)'"),
        "SUCCESS",
        "nothing else was begun"
    );
    user.leaves();
}

#[test]
fn an_archive_that_leads_out_is_refused() {
    let (mut user, base) = user(&[]);
    source(&user, "app", &format!("FROM {base}\n"));
    for (made, told) in [
        (
            "tar czf a.tgz --absolute-names --transform 's,^app,../../escaped,' app",
            "leads out of it",
        ),
        (
            "ln -sfn /etc app/etc && tar czf a.tgz -C app .",
            "links \\\"./etc\\\" to \\\"/etc\\\"",
        ),
        (
            "rm -f app/etc; mkfifo app/pipe; tar czf a.tgz -C app .",
            "neither a file",
        ),
        (
            "rm -f app/pipe; mkdir -p empty; tar czf a.tgz -C empty .",
            "the source is empty",
        ),
        ("head -c 100000 /dev/urandom > a.tgz", "neither a ZIP nor a gzipped tar"),
        (
            "rm -rf app/Dockerfile; touch app/x; tar czf a.tgz -C app .",
            "the source has no Dockerfile",
        ),
    ] {
        user.ok(made);
        let said = user.refused(&format!("gcloud builds submit a.tgz --tag={PLACE}/a"));
        assert!(said.contains(&told.replace('\\', "")), "no {told:?} in {said}");
    }
    user.ok("test -z \"$(find $DATA_DIR -name 'escaped*')\"");
    user.leaves();
}

#[test]
fn a_moved_base_is_noticed() {
    let (mut user, _) = user(&[]);
    let (one, two) = (user.layout("one"), user.layout("two"));
    let base = "us-central1-docker.pkg.dev/my-project/e2e/moving:latest";
    source(&user, "app", &format!("FROM {base}\nENV BUILT=yes\n"));
    for (layout, name) in [(one, "one"), (two, "two")] {
        user.ok(&format!("homerun images import {} {base}", layout.dir.display()));
        user.ok("gcloud run deploy app --source=app $REGION --allow-unauthenticated --quiet");
        let url = user.describe("app", "value(status.url)").trim().to_owned();
        assert_eq!(user.get(&format!("{url}/name")), name);
    }
    user.leaves();
}

#[test]
fn a_base_without_a_history_is_built_upon() {
    let (mut user, _) = user(&[]);
    let plain = user.layout("plain");
    let base = "us-central1-docker.pkg.dev/my-project/e2e/plain:latest";
    user.ok(&format!("homerun images import {} {base}", plain.dir.display()));
    let dir = source(
        &user,
        "app",
        &format!("FROM {base}\nCOPY name /etc/other\nCOPY name /etc/name\n"),
    );
    fs::write(dir.join("name"), "built").expect("written");
    user.ok("gcloud run deploy app --source=app $REGION --allow-unauthenticated --quiet");
    let url = user.describe("app", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/name")), "built");
    let log = log_of(&mut user, "$REGION");
    assert!(log.contains("\na base image has no history"), "{log}");
    user.leaves();
}

#[test]
fn our_own_words_build_and_deploy() {
    let mut user = User::of_homerun();
    let base = user.import_base();
    let dir = source(
        &user,
        "app",
        &format!("FROM {base}\nRUN echo it says this\nCOPY name /etc/name\nENTRYPOINT [\"/probe\"]\n"),
    );
    fs::write(dir.join("name"), "ours").expect("written");
    let url = user.deploy("app", "--source=app");
    assert_eq!(user.get(&format!("{url}/name")), "ours");
    let said = user.ok(&format!("gcloud builds submit app --tag={PLACE}/app:v1"));
    for line in ["FETCHSOURCE", "DONE"] {
        assert!(said.lines().any(|of| of == line), "no line {line} in {said}");
    }
    assert_eq!(
        user.ok("gcloud builds list --format='value(status)'"),
        "SUCCESS\nSUCCESS"
    );
    let id = user.ok("gcloud builds list --limit=1 --format='value(id)'");
    assert!(user.ok(&format!("gcloud builds log {id}")).contains("it says this"));
    assert!(
        user.ok(&format!("gcloud builds describe {id}"))
            .contains("status: SUCCESS")
    );
    let said = user.refused(&format!("gcloud builds cancel {id}"));
    assert!(said.contains("has ended already"), "{said}");
    fs::write(
        dir.join("Dockerfile"),
        format!("FROM {base}\nRUN echo out of luck; exit 3\n"),
    )
    .expect("written");
    let said = user.refused("gcloud run deploy app --source=app $REGION --quiet");
    assert!(said.contains("out of luck"), "{said}");
    // Nobody watches: each step is a line, once.
    let steps: Vec<&str> = said.lines().filter(|line| line.starts_with("STEP ")).collect();
    let run = "STEP 2/2: RUN echo out of luck; exit 3";
    assert_eq!(steps.iter().filter(|step| **step == run).count(), 1, "{said}");
    assert_eq!(user.get(&format!("{url}/name")), "ours");
    user.leaves();
}

#[test]
fn our_own_words_build_by_a_dockerfile_of_another_name() {
    let mut user = User::of_homerun();
    let base = user.import_base();
    let dir = source(&user, "app", "FROM nowhere.example/none\n");
    fs::create_dir_all(dir.join("docker")).expect("made");
    fs::write(
        dir.join("docker/api.Dockerfile"),
        format!("FROM {base}\nCOPY name /etc/name\nENTRYPOINT [\"/probe\"]\n"),
    )
    .expect("written");
    fs::write(dir.join("name"), "other").expect("written");
    let url = user.deploy("app", "--source=app --dockerfile=docker/api.Dockerfile");
    assert_eq!(user.get(&format!("{url}/name")), "other");
    let image = user.describe("app", "value(spec.template.spec.containers[0].image)");
    assert!(image.contains("/cloud-run-source-deploy/app@sha256:"), "{image}");
    user.ok(&format!(
        "gcloud builds submit app --tag={PLACE}/app:v2 --dockerfile=docker/api.Dockerfile"
    ));
    for (words, told) in [
        (
            "--source=app --dockerfile=absent",
            "app has no absent to build an image by",
        ),
        ("--source=app --dockerfile=../Dockerfile", "not a path below the source"),
        ("--image=x --dockerfile=y", "--source"),
    ] {
        let said = user.ok(&format!(
            "gcloud run deploy app {words} $REGION --quiet 2>&1 || echo ended $?"
        ));
        assert!(said.contains(told) && said.contains("ended "), "no {told:?} in {said}");
    }
    assert_eq!(user.get(&format!("{url}/name")), "other");
    user.leaves();
}

#[test]
fn a_build_beyond_its_memory_says_so() {
    let (mut user, base) = user(&["--build-memory", "256MiB"]);
    source(
        &user,
        "big",
        &format!("FROM {base}\nRUN text=x; while true; do text=$text$text; done\n"),
    );
    let said = user.refused(&format!("gcloud builds submit big --tag={PLACE}/big"));
    assert!(said.contains("it met its memory limit of 268435456 bytes"), "{said}");
    user.leaves();
}
