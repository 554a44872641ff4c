//! Instances of several containers: what they share and what not, the order of their starts, and one end for all.

use std::num::NonZeroU16;

use model::{
    ContainerSpec, ExitCause, Fate, InstanceSpec, InstanceState, Memory, Probe, ResolvedVar, Severity, Volume,
    VolumeMount, VolumeSource,
};

use crate::lab::Lab;

const SIDE_PORT: u16 = 9000;

/// An ingress container `app` and a sidecar `side` that serves on a port of its own and has a volume with it.
fn pair(lab: &Lab, side: &[&str]) -> InstanceSpec {
    let mut spec = lab.spec(&[]);
    let mount = |path: &str| VolumeMount {
        volume: "scratch".to_owned(),
        path: path.to_owned(),
    };
    "app".clone_into(&mut spec.container.name);
    spec.container.mounts = vec![mount("/scratch")];
    spec.volumes = vec![Volume {
        name: "scratch".to_owned(),
        source: VolumeSource::Memory {
            size_limit: Some(Memory::mebibytes(8)),
        },
    }];
    let port = NonZeroU16::new(SIDE_PORT).expect("not zero");
    spec.sidecars = vec![ContainerSpec {
        name: "side".to_owned(),
        args: side.iter().map(|word| (*word).to_owned()).collect(),
        env: vec![ResolvedVar {
            name: "PORT".to_owned(),
            value: SIDE_PORT.to_string(),
        }],
        cpu_millis: 500,
        memory_bytes: 128 << 20,
        startup_probe: Some(Probe {
            period: 20,
            timeout: 1,
            ..Probe::implicit(port)
        }),
        mounts: vec![mount("/other/place")],
        ..spec.container.clone()
    }];
    spec
}

/// A path that the sidecar answers, through the ingress container.
fn side(path: &str) -> String {
    format!("/fetch/side:{SIDE_PORT}{path}")
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_the_network_and_volumes_and_nothing_else() {
    let mut lab = Lab::open().await;
    let id = lab.ready(pair(&lab, &[])).await;

    let hosts = lab.text(&id, "/read/etc/hosts").await;
    assert!(
        hosts.contains("127.0.0.1 app\n") && hosts.contains("127.0.0.1 side\n"),
        "{hosts}"
    );
    assert_eq!(lab.text(&id, &side("/read/etc/hosts")).await, hosts);
    for (namespace, shared) in [
        ("net", true),
        ("ipc", true),
        ("uts", true),
        ("user", true),
        ("pid", false),
        ("mnt", false),
    ] {
        let own = lab.text(&id, &format!("/link/proc/self/ns/{namespace}")).await;
        let of_side = lab.text(&id, &side(&format!("/link/proc/self/ns/{namespace}"))).await;
        assert!(own.starts_with(namespace), "{own}");
        assert_eq!(own == of_side, shared, "{namespace}: {own} {of_side}");
    }

    assert_eq!(lab.text(&id, "/write/tmp/own").await, "ok");
    assert_eq!(lab.text(&id, &side("/list/tmp")).await, "", "files are each one's own");
    let mode = lab.text(&id, "/stat/scratch").await;
    assert!(mode.starts_with("41777 0 0"), "{mode}");
    assert_eq!(lab.text(&id, "/write/scratch/shared").await, "ok");
    assert_eq!(lab.text(&id, &side("/read/other/place/shared")).await, "written");
    let full = lab.text(&id, "/fill/9/scratch/much").await;
    assert!(full.contains("No space left"), "the volume holds 8 MiB: {full}");

    let limit = "/read/sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(lab.text(&id, limit).await, format!("{}\n", 256 << 20));
    assert_eq!(lab.text(&id, &side(limit)).await, format!("{}\n", 128 << 20));
    let quota = "/read/sys/fs/cgroup/cpu/cpu.cfs_quota_us";
    assert_eq!(lab.text(&id, quota).await, "100000\n");
    assert_eq!(lab.text(&id, &side(quota)).await, "50000\n");

    assert_eq!(lab.text(&id, "/say/mine").await, "said");
    assert_eq!(lab.text(&id, &side("/say/its")).await, "said");
    assert_eq!(lab.kept_line(|line| line.text == "mine").await.container, "app");
    assert_eq!(lab.kept_line(|line| line.text == "its").await.container, "side");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dependency_has_started_before() {
    let mut lab = Lab::open().await;
    let mut spec = pair(&lab, &["late", "700"]);
    spec.container.depends_on = vec!["side".to_owned()];
    let id = lab.ready(spec).await;
    let passed = async |lab: &mut Lab, name: &str| {
        let says = format!("succeeded after 1 attempt for container \"{name}\"");
        lab.kept_line(|line| line.text.contains(&says)).await.at
    };
    let side_at = passed(&mut lab, "side").await;
    let app_at = passed(&mut lab, "app").await;
    assert!(side_at < app_at, "{side_at:?} {app_at:?}");
    // The guest counts milliseconds from its start: the app began after the sidecar, which was 700 ms late, listened.
    let count = |text: String| text.parse::<u64>().expect("a number");
    let app = count(lab.text(&id, "/count").await);
    let of_side = count(lab.text(&id, &side("/count")).await);
    assert!(app <= of_side, "{app} {of_side}");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ends_takes_all_with_it() {
    let mut lab = Lab::open().await;
    let id = lab.ready(pair(&lab, &[])).await;
    let _ = lab.get(&id, &side("/die/7")).await;
    let exit = lab.exit(&id).await;
    assert_eq!(exit.cause, ExitCause::Code(7));
    assert_eq!(exit.container.as_deref(), Some("side"));
    assert!(exit.was_ready);
    let line = lab.kept_line(|line| line.severity == Severity::Error).await;
    assert_eq!(
        line.text,
        "Container \"side\" ended with exit code 7, and the instance with it."
    );
    assert_eq!(lab.engine.fate(&id), Fate::Ended);

    let id = lab.start(pair(&lab, &["exit", "3"])).await;
    let exit = lab.exit(&id).await;
    assert_eq!((exit.cause.clone(), exit.was_ready), (ExitCause::Code(3), false));
    let (_, message) = exit.failure(8080);
    assert!(
        message.starts_with("Container \"side\": ") && message.contains("exit code 3"),
        "{message}"
    );
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_memory_ends_all_and_names_whose() {
    let mut lab = Lab::open().await;
    let id = lab.ready(pair(&lab, &[])).await;
    let _ = lab.get(&id, &side("/child/eat/200")).await;
    let exit = lab.exit(&id).await;
    let limit_bytes = 128 << 20;
    assert_eq!(exit.cause, ExitCause::OutOfMemory { limit_bytes });
    assert_eq!(exit.container.as_deref(), Some("side"));
    assert_eq!(lab.engine.fate(&id), Fate::OutOfMemory { limit_bytes });
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_reaches_every_container() {
    let mut lab = Lab::open().await;
    let mut spec = pair(&lab, &["polite"]);
    spec.container.args = vec!["polite".to_owned()];
    let id = lab.ready(spec).await;
    lab.engine
        .stop(&id, std::time::Duration::from_secs(20))
        .await
        .expect("known");
    let exit = lab.exit(&id).await;
    assert_eq!((exit.cause, exit.container), (ExitCause::Stopped, None));
    for name in ["app", "side"] {
        lab.kept_line(|line| line.text == "bye" && line.container == name).await;
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_instance_is_parked_with_all() {
    let mut lab = Lab::open().await;
    let mut spec = pair(&lab, &[]);
    spec.container.depends_on = vec!["side".to_owned()];
    let id = spec.id.clone();
    lab.engine.park(spec).await.expect("accepted");
    lab.until(&id, |state| *state == InstanceState::Parked).await;
    lab.engine.release(&id).expect("known");
    let seen = lab
        .until(&id, |state| {
            matches!(state, InstanceState::Ready | InstanceState::Stopped(_))
        })
        .await;
    assert_eq!(seen.state, InstanceState::Ready);
    assert!(lab.text(&id, &side("/env")).await.contains("PORT=9000"));

    let spec = pair(&lab, &[]);
    let id = spec.id.clone();
    lab.engine.park(spec).await.expect("accepted");
    lab.engine
        .stop(&id, std::time::Duration::from_secs(1))
        .await
        .expect("known");
    assert_eq!(lab.exit(&id).await.cause, ExitCause::Stopped);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_container_may_have_a_volume() {
    let mut lab = Lab::open().await;
    let mut spec = pair(&lab, &[]);
    spec.sidecars.clear();
    let id = lab.ready(spec).await;
    assert_eq!(lab.text(&id, "/write/scratch/a").await, "ok");
    lab.close().await;
}
