//! From source to an image by buildpacks: a builder of the tests' own, whose lifecycle is a stand-in that keeps to the
//! platform interface (`e2e/lifecycle`).

use std::{
    fs,
    time::{Duration, Instant},
};

use homerun_e2e::{Builder, Client, Layout, User};

const LIFECYCLE: &str = env!("CARGO_BIN_EXE_lifecycle");
const PLACE: &str = "us-central1-docker.pkg.dev/my-project";
const OWN: [&str; 2] = [
    "--build-builder",
    "us-central1-docker.pkg.dev/my-project/e2e/builder:latest",
];

/// A Homerun with a builder and its run image.
fn user(flags: &[&str], client: Client) -> User {
    let mut user = User::with(flags, client);
    let layouts = user.homerun.root().join("layouts");
    let run_image = format!("{PLACE}/e2e/run:latest");
    let run = Builder::write_run_image(&layouts.join("run"), LIFECYCLE).expect("a layout");
    import(&mut user, &run, "run");
    let builder = Builder::default().write(&layouts.join("builder"), LIFECYCLE, &run_image);
    import(&mut user, &builder.expect("a layout"), "builder");
    user
}

fn import(user: &mut User, layout: &Layout, name: &str) {
    user.ok(&format!(
        "homerun images import {} {PLACE}/e2e/{name}:latest",
        layout.dir.display()
    ));
}

/// A directory at `~/NAME` with these files.
fn directory(user: &User, name: &str, files: &[(&str, &str)]) {
    let dir = user.homerun.root().join("home").join(name);
    for (file, text) in files {
        let path = dir.join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }
}

fn log_of(user: &mut User, which: &str) -> String {
    user.ok(&format!(
        "gcloud builds log $(gcloud builds list {which} --limit=1 --format='value(id)') {which}"
    ))
}

const DEPLOY: &str = "gcloud run deploy site --source=site $REGION --allow-unauthenticated --quiet";

#[test]
fn a_source_is_built_by_homeruns_own_builder() {
    let mut user = user(&OWN, Client::Google);
    directory(&user, "site", &[("index.html", "<p>first\n")]);
    user.ok(DEPLOY);
    let url = user.describe("site", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/")).trim(), "<p>first");
    let log = log_of(&mut user, "$REGION");
    for line in [
        "DETECT",
        "buildpacks of us-central1-docker.pkg.dev/my-project/e2e/builder:latest (Homerun's own, by --build-builder)",
        "version 0.12 of the platform interface",
        "previous image: not found",
        "pass: test/site@1.2",
        "built by 1000:1001 in /workspace, colour none",
        "DONE",
    ] {
        assert!(log.lines().any(|of| of == line), "no line {line} in {log}");
    }
    // The same once more is the same image, and is not made again.
    let digest = "gcloud builds list $REGION --limit=1 --format='value(results.images[0].digest)'";
    let first = user.ok(digest);
    user.ok(DEPLOY);
    assert!(first.starts_with("sha256:") && user.ok(digest) == first, "{first}");
    let log = log_of(&mut user, "$REGION");
    assert!(
        log.contains("unchanged since build") && !log.contains("built by"),
        "{log}"
    );
    // The layer of the earlier build is there, and the image is known.
    directory(&user, "site", &[("index.html", "<p>second\n")]);
    user.ok(&format!("{DEPLOY} --set-build-env-vars=COLOR=red"));
    assert_eq!(user.get(&format!("{url}/")).trim(), "<p>second");
    let log = log_of(&mut user, "$REGION");
    for line in [
        "previous image: found",
        "layer of an earlier build: none",
        "built by 1000:1001 in /workspace, colour red",
    ] {
        assert!(log.lines().any(|of| of == line), "no line {line} in {log}");
    }
    // Another builder under the name makes it anew, or does not.
    let layouts = user.homerun.root().join("layouts");
    let other = Builder {
        speaks_another_interface: true,
        ..Builder::default()
    };
    let other = other.write(&layouts.join("other"), LIFECYCLE, &format!("{PLACE}/e2e/run:latest"));
    import(&mut user, &other.expect("a layout"), "builder");
    let said = user.refused(&format!("{DEPLOY} --set-build-env-vars=COLOR=red 2>&1"));
    assert!(said.contains("platform interface"), "{said}");
    // A Dockerfile is closer to the source.
    user.import_base();
    let dockerfile = format!("FROM {PLACE}/e2e/base:latest\nENTRYPOINT [\"/probe\"]\n");
    directory(&user, "site", &[("Dockerfile", &dockerfile)]);
    user.ok(DEPLOY);
    assert!(log_of(&mut user, "$REGION").contains("STEP 1/2: FROM"));
    assert_eq!(user.ok("ls $DATA_DIR/builds/work | wc -l"), "0");
    user.leaves();
}

#[test]
fn gcloud_submits_packs_and_descriptors() {
    let mut user = user(&[], Client::Google);
    directory(
        &user,
        "site",
        &[("index.html", "x"), ("secret.txt", "x"), ("sub/notes.txt", "x")],
    );
    let submit = format!("gcloud builds submit site --pack=image={PLACE}/built/site:v1");
    let said = user.ok(&format!("{submit},builder={PLACE}/e2e/builder,env=COLOR=blue"));
    for line in ["built by 1000:1001 in /workspace, colour blue", "secret.txt", "DONE"] {
        assert!(said.lines().any(|of| of == line), "no line {line} in {said}");
    }
    assert!(said.contains("named by the build"), "{said}");
    // Nobody names one, and Google's is not here.
    let said = user.refused(&submit);
    assert!(said.contains("gcr.io/buildpacks/builder:latest not found"), "{said}");
    assert!(said.contains("homerun images import"), "{said}");

    let descriptor = format!(
        "[_]\nschema-version = \"0.2\"\n[io.buildpacks]\nbuilder = \"{PLACE}/e2e/builder\"\n\
         exclude = [\"*.txt\", \"!sub/notes.txt\"]\n\
         [[io.buildpacks.group]]\nid = \"test/site\"\n\
         [[io.buildpacks.build.env]]\nname = \"COLOR\"\nvalue = \"green\"\n"
    );
    directory(&user, "site", &[("project.toml", &descriptor)]);
    let said = user.ok(&submit);
    for line in ["built by 1000:1001 in /workspace, colour green", "index.html", "sub"] {
        assert!(said.lines().any(|of| of == line), "no line {line} in {said}");
    }
    assert!(!said.contains("secret.txt"), "{said}");
    // The same by a deploy, where what the command says wins.
    user.ok(&format!(
        "{DEPLOY} --set-build-env-vars=COLOR=black --base-image={PLACE}/e2e/run --no-automatic-updates"
    ));
    let log = log_of(&mut user, "$REGION");
    assert!(log.contains("colour black"), "{log}");
    assert!(log.contains("named by the project descriptor"), "{log}");

    directory(&user, "site", &[("project.toml", "[io.buildpacks]\nbuilder = 7\n")]);
    let said = user.refused(&submit);
    assert!(said.contains("project.toml is not a project descriptor"), "{said}");
    directory(
        &user,
        "site",
        &[(
            "project.toml",
            &descriptor.replace("id = \"test/site\"", "id = \"test/other\""),
        )],
    );
    let said = user.refused(&submit);
    assert!(said.contains("no buildpack \"test/other\"; it has test/site"), "{said}");
    user.leaves();
}

#[test]
fn a_configuration_may_run_pack() {
    let mut user = user(&[], Client::Google);
    directory(&user, "site", &[("app/index.html", "x")]);
    let config = |args: &str| {
        format!(
            "steps:\n- name: buildpacksio/pack\n  args: [build, '{PLACE}/built/site', --builder, \
             '{PLACE}/e2e/builder', {args}]\nimages: ['{PLACE}/built/site']\n"
        )
    };
    let cache = format!("--path=app, --cache-image={PLACE}/built/cache:site");
    directory(&user, "site", &[("cloudbuild.yaml", &config(&cache))]);
    user.ok("gcloud builds submit site --config=site/cloudbuild.yaml");
    directory(&user, "site", &[("app/index.html", "y")]);
    let said = user.ok("gcloud builds submit site --config=site/cloudbuild.yaml");
    assert!(said.contains("layer of an earlier build: none"), "{said}");
    let kept = user.ok(&format!(
        "gcloud artifacts docker tags list {PLACE}/built/cache --format='value(tag)'"
    ));
    assert_eq!(kept.lines().last(), Some("site"), "{kept}");
    directory(
        &user,
        "site",
        &[("cloudbuild.yaml", &config(&format!("{cache}, --clear-cache")))],
    );
    let said = user.ok("gcloud builds submit site --config=site/cloudbuild.yaml");
    assert!(!said.contains("layer of an earlier build"), "{said}");
    for (args, told) in [
        ("--buildpack=x", "pack build --buildpack is not served"),
        ("--env, A", "\\\"A\\\" is no NAME=VALUE"),
        ("--cache-image=docker.io/x/y", "images are pushed to this Homerun only"),
        ("--network=host", "--network=host is not served"),
    ] {
        directory(&user, "site", &[("cloudbuild.yaml", &config(args))]);
        let said = user.refused("gcloud builds submit site --config=site/cloudbuild.yaml");
        assert!(said.contains(&told.replace('\\', "")), "no {told:?} in {said}");
    }
    user.leaves();
}

/// What a buildpack must not be able to do; each line that succeeds fails the build with its own words.
const PRISON: &str = r#"
refused() { echo "reached: $1"; exit 1; }
[ "$(ls /sys/class/net)" = lo ] || refused "another link than lo"
for address in 127.0.0.1 MACHINE; do
    (exec 3<>/dev/tcp/$address/API) 2>/dev/null && refused "the API port at $address"
done
(exec 3<>/dev/tcp/169.254.169.254/80) 2>/dev/null && refused "the metadata server"
exec 3<>/dev/tcp/127.0.0.1/3128 || refused "no registry, so that nothing is told of it"
printf 'GET /v2/ HTTP/1.0\r\n\r\n' >&3
IFS= read -r answer <&3
[[ $answer == *401* ]] || refused "the registry of the build: $answer"
[ -e DATA ] && refused "the data directory"
(cat /proc/1/environ >/dev/null) 2>/dev/null && refused "the lifecycle's environment"
ls /proc/1/root/ 2>/dev/null && refused "the lifecycle's root"
(echo x > /cnb/order.toml) 2>/dev/null && refused "the builder's own files"
(echo x > /platform/env/X) 2>/dev/null && refused "the platform's files"
[ -z "$CNB_REGISTRY_AUTH" ] || refused "the credentials"
for kind in user mount net pid; do
    said=$(unshare --$kind ls / 2>&1) && refused "a $kind namespace of its own"
done
while read -r key value; do
    case $key in
    CapEff: | CapPrm: | CapInh: | CapAmb:) [ "$value" = 0000000000000000 ] || refused "privileges: $key $value" ;;
    CapBnd:) [ "$value" = 00000000000000fb ] || refused "other privileges: $key $value" ;;
    NoNewPrivs:) [ "$value" = 1 ] || refused "new privileges" ;;
    Groups:) [ -z "$value" ] || refused "groups $value" ;;
    esac
done </proc/self/status
echo nothing was reached
"#;

#[test]
fn a_buildpack_finds_only_its_own_loopback() {
    let mut user = user(&OWN, Client::Google);
    let machine = user.ok("hostname -I");
    let machine = machine.split_whitespace().next().unwrap_or("127.0.0.2").to_owned();
    let api = user.homerun.api().port();
    let data = user.ok("echo $DATA_DIR");
    let script = PRISON
        .replace("MACHINE", &machine)
        .replace("API", &api.to_string())
        .replace("DATA", &data);
    directory(&user, "site", &[("index.html", "x"), ("script", &script)]);
    let said = user.ok(&format!("gcloud builds submit site --pack=image={PLACE}/built/site"));
    assert!(said.contains("nothing was reached"), "{said}");
    user.leaves();
}

#[test]
fn failures_say_what_they_are_and_leave_nothing() {
    let mut user = user(&OWN, Client::Homerun);
    let layouts = user.homerun.root().join("layouts");
    let run_image = format!("{PLACE}/e2e/run:latest");
    for (name, builder) in [
        (
            "another",
            Builder {
                speaks_another_interface: true,
                ..Builder::default()
            },
        ),
        (
            "silent",
            Builder {
                names_no_run_image: true,
                ..Builder::default()
            },
        ),
        ("lonely", Builder::default()),
    ] {
        let run_image = if name == "lonely" {
            "gcr.io/e2e/none"
        } else {
            &run_image
        };
        let layout = builder
            .write(&layouts.join(name), LIFECYCLE, run_image)
            .expect("a layout");
        import(&mut user, &layout, name);
    }
    user.import_base();
    directory(&user, "nothing", &[("notes.txt", "x")]);
    directory(&user, "torn", &[("index.html", "x"), ("torn", "")]);
    directory(&user, "fails", &[("index.html", "x"), ("fails", "")]);
    directory(&user, "late", &[("index.html", "x"), ("breaks-at-the-end", "")]);
    directory(&user, "good", &[("index.html", "x")]);
    let submit = |dir: &str, more: &str| format!("gcloud builds submit {dir} --pack=image={PLACE}/failed/x{more}");
    for (command, told) in [
        (submit("nothing", ""), "takes this source (test/site) at ===> DETECTING"),
        (submit("torn", ""), "and one of them failed at ===> DETECTING"),
        (submit("fails", ""), "a buildpack failed at ===> BUILDING"),
        (submit("fails", ""), "out of luck"),
        (submit("late", ""), "the image cannot be put together at ===> EXPORTING"),
        (
            submit("good", &format!(",builder={PLACE}/e2e/base")),
            "it has no /cnb/lifecycle/creator, so that it is not a builder",
        ),
        (
            submit("good", &format!(",builder={PLACE}/e2e/another")),
            "its lifecycle speaks versions 0.1, 7.0 of the platform interface, and this Homerun 0.3 to 0.15",
        ),
        (
            submit("good", &format!(",builder={PLACE}/e2e/silent")),
            "does not say what its apps run on",
        ),
        (
            submit("good", &format!(",builder={PLACE}/e2e/lonely")),
            "gcr.io/e2e/none:latest not found",
        ),
        (
            submit("good", &format!(",builder={PLACE}/e2e/absent")),
            "builder: image us-central1-docker.pkg.dev/my-project/e2e/absent:latest not found",
        ),
    ] {
        let said = user.refused(&format!("{command} 2>&1"));
        assert!(said.contains(told), "no {told:?} in\n{said}");
    }
    let named = user.ok(&format!(
        "gcloud artifacts docker images list {PLACE}/failed --format='value(package)' 2>/dev/null"
    ));
    assert_eq!(named, "", "nothing of a build that did not end well has a name");
    assert_eq!(user.ok("ls $DATA_DIR/builds/work | wc -l"), "0");
    user.leaves();
}

#[test]
fn a_build_by_buildpacks_ends_at_its_limits() {
    let mut user = user(&[&OWN[..], &["--build-memory", "256MiB"]].concat(), Client::Google);
    directory(
        &user,
        "slow",
        &[("index.html", "x"), ("script", "echo it begins; sleep 600 & sleep 601")],
    );
    let submit = format!("gcloud builds submit slow --pack=image={PLACE}/built/slow");
    user.ok(&format!("BUILD=$({submit} --async --format='value(id)')"));
    let logs = user.homerun.root().join("data/builds/log");
    let begun = || {
        let entries = fs::read_dir(&logs).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| fs::read_to_string(entry.path()).ok())
            .any(|text| text.contains("it begins"))
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while !begun() {
        assert!(Instant::now() < deadline, "it does not begin:\n{}", user.homerun.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    user.ok("gcloud builds cancel $BUILD");
    assert_eq!(
        user.ok("gcloud builds describe $BUILD --format='value(status)'"),
        "CANCELLED"
    );
    let said = user.refused(&format!("{submit} --timeout=4s"));
    assert!(said.contains("longer than its limit of 4 seconds"), "{said}");
    let script = "text=x; while true; do text=$text$text; done";
    directory(&user, "big", &[("index.html", "x"), ("script", script)]);
    let said = user.refused(&format!("gcloud builds submit big --pack=image={PLACE}/built/big"));
    assert!(said.contains("it met its memory limit of 268435456 bytes"), "{said}");
    assert_eq!(user.ok("ls $DATA_DIR/builds/work | wc -l"), "0");
    user.leaves();
}

#[test]
fn our_own_words_name_a_builder() {
    let mut user = user(&[], Client::Homerun);
    directory(&user, "site", &[("index.html", "<p>ours\n")]);
    let builder = format!("{PLACE}/e2e/builder");
    let said = user.ok(&format!(
        "{DEPLOY} --builder={builder} --set-build-env-vars=COLOR=red 2>&1"
    ));
    assert!(
        said.contains(&format!("buildpacks of {builder} (named by the build)")),
        "{said}"
    );
    let url = user.describe("site", "value(status.url)").trim().to_owned();
    assert_eq!(user.get(&format!("{url}/")).trim(), "<p>ours");
    assert!(log_of(&mut user, "$REGION").contains("colour red"));
    let said = user.ok(&format!(
        "gcloud builds submit site --pack=image={PLACE}/built/site,builder={builder},env=COLOR=blue"
    ));
    assert!(said.contains("colour blue"), "{said}");
    // Without a builder there is nobody to take variables.
    let said = user.refused(&format!("{DEPLOY} --set-build-env-vars=COLOR=red 2>&1"));
    assert!(
        said.contains("the build has environmentVariables, which needs a builder of buildpacks"),
        "{said}"
    );
    directory(&user, "site", &[("Dockerfile", "FROM x\n")]);
    let said = user.refused(&format!("{DEPLOY} --set-build-env-vars=COLOR=red 2>&1"));
    assert!(said.contains("the source has a Dockerfile"), "{said}");
    let said = user.ends("gcloud run deploy x --image=x --builder=y $REGION --quiet 2>&1", 2);
    assert!(said.contains("give its --source"), "{said}");
    let said = user.ends(&format!("{DEPLOY} --automatic-updates 2>&1"), 2);
    assert!(said.contains("--automatic-updates"), "{said}");
    user.leaves();
}
