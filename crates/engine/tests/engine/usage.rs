//! What instances take, and what is taken back from idle ones.

use std::time::Duration;

use model::Activity;

use crate::lab::{Lab, Recipe, layer};

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_what_the_instance_does() {
    let mut lab = Lab::open().await;
    let busy = lab.ready(lab.spec(&[])).await;
    let still = lab.ready(lab.spec(&[])).await;
    let both = || vec![busy.clone(), still.clone()];
    let before = lab.engine.usage(both()).await;
    assert_eq!(lab.text(&busy, "/fill/20/some-file").await, "ok");
    let spun: u64 = lab.text(&busy, "/spin/300").await.parse().expect("milliseconds");
    let after = lab.engine.usage(both()).await;
    let grown = |id| {
        let (before, after) = (before[id], after[id]);
        let memory = after.memory_bytes.saturating_sub(before.memory_bytes);
        (
            memory >> 20,
            u64::try_from(after.cpu.saturating_sub(before.cpu).as_millis()).expect("small"),
        )
    };
    let (memory, cpu) = grown(&busy);
    // The kernel counts in batches.
    assert!((18..40).contains(&memory), "{memory} MiB");
    assert!(cpu >= spun, "{cpu} ms of {spun} ms");
    assert!(grown(&still).0 < 10 && grown(&still).1 < cpu, "{:?}", grown(&still));

    lab.engine.stop(&busy, Duration::ZERO).await.expect("known");
    lab.exit(&busy).await;
    assert_eq!(lab.engine.usage(both()).await.keys().collect::<Vec<_>>(), [&still]);
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reclaimed_instance_is_smaller_and_serves_on() {
    let mut recipe = Recipe::default();
    let large = vec![b'x'; 16 << 20];
    recipe.layers.push(layer(&[("large", &large, 0o644, 0)]));
    let mut lab = Lab::with(recipe).await;
    let first = lab.ready(lab.spec(&[])).await;
    // Unpacked now. Off the machine's memory, so that the next reader's memory is what it is read into.
    for layer in std::fs::read_dir(lab.data().join("images/layers")).expect("layers") {
        let path = layer.expect("a layer").path().join("root/large");
        if let Ok(file) = std::fs::File::open(path) {
            file.sync_all().expect("written out");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
        }
    }
    let id = lab.ready(lab.spec(&[])).await;
    let memory = async |lab: &Lab| lab.engine.usage(vec![id.clone()]).await[&id].memory_bytes;
    lab.engine.activity(&id, Activity::Busy);
    assert_eq!(lab.text(&id, "/write/kept").await, "ok");
    let before = memory(&lab).await;
    assert_eq!(lab.text(&id, "/read/large").await.len(), large.len());
    assert!(
        memory(&lab).await > before + (12 << 20),
        "read into somebody else's memory"
    );
    assert_eq!(lab.engine.reclaim(&id).await.expect("asked"), 0, "it has a request");

    lab.engine.activity(&id, Activity::Idle);
    let given = lab.engine.reclaim(&id).await.expect("reclaimed");
    assert!(given > 12 << 20, "{given} bytes");
    assert!(memory(&lab).await < before + (4 << 20));
    assert_eq!(lab.text(&id, "/read/kept").await, "written");
    assert_eq!(lab.text(&id, "/read/large").await.len(), large.len());
    assert_eq!(lab.engine.fate(&id), model::Fate::Alive);

    // What nobody runs has nothing.
    lab.engine.stop(&first, Duration::ZERO).await.expect("known");
    lab.exit(&first).await;
    assert_eq!(lab.engine.reclaim(&first).await.expect("asked"), 0);
    lab.close().await;
}
