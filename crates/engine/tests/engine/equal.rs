//! A sandbox of our own is the one that crun makes. The guest tells everything that it can find out about where it is,
//! once for each maker, and every line must be the same. Where ours is stricter it is named here.

use std::collections::{BTreeMap, BTreeSet};

use homerun_engine::Maker;
use model::InstanceSpec;
use serde_json::json;

use crate::lab::{Lab, Recipe};

/// What differs and may: the beginning of a line's name, and why ours is the stricter or cleaner one.
const EXPLAINED: [(&str, &str); 3] = [
    (
        "mount at /proc/",
        "read-only parts of /proc keep nosuid, nodev and noexec of the mount that they are parts of",
    ),
    (
        "group /sys/fs/cgroup/net_cls",
        "crun leaves links to a hierarchy that is not there",
    ),
    (
        "group /sys/fs/cgroup/net_prio",
        "crun leaves links to a hierarchy that is not there",
    ),
];

/// Lines by their names. Numbers of namespaces become whose they are.
fn facts(dump: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for line in dump.lines() {
        let (name, value) = line.split_once(" = ").unwrap_or((line, ""));
        let mut value = value;
        if let Some(kind) = name.strip_prefix("namespace ") {
            let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
            let ours = ours.to_string_lossy() == value;
            value = if ours { "the machine's" } else { "its own" };
        }
        let before = all.insert(name.to_owned(), value.to_owned());
        assert!(before.is_none_or(|before| before == value), "{name} is told twice");
    }
    all
}

async fn told(maker: Maker, recipe: Recipe, change: fn(&mut InstanceSpec)) -> BTreeMap<String, String> {
    let mut lab = Lab::made_by(maker, recipe).await;
    let mut spec = lab.spec(&[]);
    change(&mut spec);
    let id = lab.ready(spec).await;
    let dump = lab.text(&id, "/dump").await;
    lab.engine.stop(&id, std::time::Duration::ZERO).await.expect("known");
    lab.exit(&id).await;
    lab.close().await;
    facts(&dump)
}

async fn compare(recipe: fn() -> Recipe, change: fn(&mut InstanceSpec)) -> BTreeMap<String, String> {
    let (crun, ours) = tokio::join!(told(Maker::Crun, recipe(), change), told(Maker::Own, recipe(), change));
    let names: BTreeSet<&String> = crun.keys().chain(ours.keys()).collect();
    let mut different = Vec::new();
    for name in names {
        if crun.get(name) != ours.get(name) && !EXPLAINED.iter().any(|(begin, _)| name.starts_with(begin)) {
            different.push(format!(
                "{name}\n  crun {:?}\n  ours {:?}",
                crun.get(name),
                ours.get(name)
            ));
        }
    }
    assert!(
        different.is_empty(),
        "{} differ:\n{}",
        different.len(),
        different.join("\n")
    );
    // Each way of looking found something.
    for (kind, least) in [
        ("namespace ", 8),
        ("owner of namespace ", 8),
        ("status ", 30),
        ("proc ", 10),
        ("environment ", 3),
        ("prctl ", 10),
        ("system ", 8),
        ("file ", 3),
        ("mount at ", 20),
        ("tree /dev", 15),
        ("tree /proc", 40),
        ("group ", 60),
        ("writable /proc/sys", 300),
        ("reach ", 30),
        ("call ", 550),
    ] {
        let found = ours.keys().filter(|name| name.starts_with(kind)).count();
        assert!(found >= least, "{found} of {kind}");
    }
    // What crun's are stricter than would be a hole of ours.
    for (name, value) in ours.iter().filter(|(name, _)| name.starts_with("mount at /proc/")) {
        let theirs = &crun[name];
        for word in ["ro", "nosuid", "nodev", "noexec"] {
            let has = |text: &str| text.split([' ', ',']).any(|each| each == word);
            assert!(
                !has(theirs) || has(value),
                "{name}: {word} of {theirs} is not in {value}"
            );
        }
    }
    ours
}

#[tokio::test(flavor = "multi_thread")]
async fn as_root() {
    let ours = compare(Recipe::default, |_| ()).await;
    assert_eq!(ours["status Seccomp"], "2");
    assert_eq!(ours["namespace net"], "its own");
    assert_eq!(ours["namespace time"], "the machine's");
    assert_eq!(ours["owner of namespace net"], "ours");
}

#[tokio::test(flavor = "multi_thread")]
async fn as_a_user_with_groups() {
    let recipe = || {
        let mut recipe = Recipe::default();
        recipe.layers.push(crate::lab::layer(&[(
            "etc/group",
            b"root:x:0:\napp:x:1001:\none:x:5:app\ntwo:x:77:app\n",
            0o644,
            0,
        )]));
        recipe.config["User"] = json!("app");
        recipe.config["WorkingDir"] = json!("/work/not/there");
        recipe
    };
    let ours = compare(recipe, |spec| spec.startup_cpu_boost = true).await;
    assert_eq!(ours["status Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(ours["status Groups"], "5 77");
    assert_eq!(ours["link cwd"], "/work/not/there");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_other_limits_and_words() {
    let recipe = || {
        let mut recipe = Recipe::default();
        recipe.config["User"] = json!("7:9");
        recipe
    };
    let ours = compare(recipe, |spec| {
        spec.container.cpu_millis = 80;
        spec.container.memory_bytes = 128 << 20;
        spec.container.command = vec!["guest".to_owned()];
        spec.container.args = vec!["serve".to_owned(), "more words".to_owned()];
        for (name, value) in [
            ("PATH", "/bin:/"),
            ("EMPTY", ""),
            ("HOME", "/somewhere"),
            ("LINES", "a\nb"),
        ] {
            spec.container.env.push(model::ResolvedVar {
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
    })
    .await;
    assert_eq!(ours["proc cmdline"], "guest\0serve\0more words\0");
    assert!(ours["group /sys/fs/cgroup/cpu/cpu.cfs_quota_us"].ends_with(" 8000"));
}
