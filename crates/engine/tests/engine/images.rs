//! What an image can do to the root of its instances.

use std::{fs, os::unix::fs::MetadataExt as _};

use crate::lab::{Lab, Recipe, layer, links};

#[tokio::test(flavor = "multi_thread")]
async fn an_upper_layer_hides_and_replaces() {
    let mut recipe = Recipe::default();
    recipe.layers.push(layer(&[
        ("gone", b"x", 0o644, 0),
        ("both", b"lower", 0o644, 0),
        ("opaque/old", b"x", 0o644, 0),
    ]));
    recipe.layers.push(layer(&[
        (".wh.gone", b"", 0o644, 0),
        ("both", b"upper", 0o600, 7),
        ("opaque/.wh..wh..opq", b"", 0o644, 0),
        ("opaque/new", b"x", 0o644, 0),
    ]));
    let mut lab = Lab::with(recipe).await;
    let id = lab.ready(lab.spec(&[])).await;
    assert!(lab.text(&id, "/read/gone").await.starts_with("error: No such file"));
    assert_eq!(lab.text(&id, "/read/both").await, "upper");
    assert_eq!(lab.text(&id, "/stat/both").await, "100600 7 7 0");
    assert_eq!(lab.text(&id, "/list/opaque").await, "new");
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_and_thirty_layers_are_stacked() {
    let mut recipe = Recipe::default();
    for number in 0..128 {
        let (name, text) = (format!("layer-{number}"), number.to_string());
        recipe.layers.push(layer(&[(&name, text.as_bytes(), 0o644, 0)]));
    }
    let mut lab = Lab::with(recipe).await;
    let id = lab.ready(lab.spec(&[])).await;
    for number in [0, 64, 127] {
        assert_eq!(
            lab.text(&id, &format!("/read/layer-{number}")).await,
            number.to_string()
        );
    }
    lab.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_of_an_image_lead_to_nothing_of_the_machine() {
    let place = tempfile::tempdir().expect("a directory");
    let (tmp, etc) = (place.path().join("tmp"), place.path().join("etc"));
    fs::create_dir(&tmp).expect("made");
    fs::create_dir(&etc).expect("made");
    let before = fs::metadata(&tmp).expect("there").mode();
    for up in ["", "../../../../.."] {
        let to = |path: &std::path::Path| format!("{up}{}", path.display());
        let mut recipe = Recipe::default();
        // Without the first layer's etc/passwd, which would be in the way.
        let program = recipe.layers.remove(0);
        let program = {
            let mut archive = tar::Archive::new(program.as_slice());
            let mut entry = archive
                .entries()
                .expect("entries")
                .next()
                .expect("one")
                .expect("readable");
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("read");
            bytes
        };
        recipe.layers.push(layer(&[("guest", &program, 0o755, 0)]));
        recipe.layers.push(links(&[
            ("tmp", &to(&tmp)),
            ("etc", &to(&etc)),
            ("proc", &to(&etc)),
            ("dev", &to(&etc)),
        ]));
        let mut lab = Lab::with(recipe).await;
        let id = lab.start(lab.spec(&[])).await;
        // It may run or be refused; either way nothing outside was touched.
        lab.until(&id, |state| *state == model::InstanceState::Ready || !state.is_alive())
            .await;
        assert_eq!(fs::metadata(&tmp).expect("there").mode(), before);
        assert_eq!(fs::read_dir(&etc).expect("there").count(), 0);
        lab.close().await;
    }
}
