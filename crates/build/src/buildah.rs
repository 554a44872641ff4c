//! What buildah is told: its words for a build and for taking an image out, its environment, and what it says.

use std::path::{Path, PathBuf};

use model::Recipe;

use crate::{
    generate::{self, Generated},
    index::Index,
    relay, root, take,
};

/// What the image is called while it is only the builder's.
const OWN_NAME: &str = "homerun.build/image:latest";

/// What buildah says at the second step on a base image whose configuration has no history: it counts its own steps
/// against all layers. Without a history it does not count, and does not find layers of earlier builds either.
pub(crate) const NO_HISTORY: &str = "internal error: history lists";

/// Whether an image tells how it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum History {
    Kept,
    LeftOut,
}

/// The Dockerfile below the source's root, and how it is called when it is missing.
pub(crate) fn dockerfile(recipe: &Recipe) -> (PathBuf, String) {
    if recipe.dockerfile.is_empty() {
        let file = Path::new(&recipe.directory).join("Dockerfile");
        let name = file.display().to_string();
        (file, name)
    } else {
        (PathBuf::from(&recipe.dockerfile), recipe.dockerfile.clone())
    }
}

pub(crate) fn environment(secret: &str) -> Vec<String> {
    let proxy = relay::address(root::PORT, secret);
    vec![
        "PATH=/usr/bin".to_owned(),
        "HOME=/root".to_owned(),
        format!("TMPDIR={}", root::TEMPORARY),
        format!("XDG_RUNTIME_DIR={}", root::RUN),
        // It is in a user namespace already, and need not make one.
        "_CONTAINERS_USERNS_CONFIGURED=done".to_owned(),
        "BUILDAH_ISOLATION=chroot".to_owned(),
        format!("HTTP_PROXY={proxy}"),
        format!("HTTPS_PROXY={proxy}"),
    ]
}

fn program() -> Vec<String> {
    let words = [
        root::PROGRAM,
        "--storage-driver",
        "overlay",
        "--root",
        root::STORAGE,
        "--runroot",
        root::RUN,
    ];
    words.map(str::to_owned).to_vec()
}

pub(crate) fn build_arguments(
    recipe: &Recipe,
    generated: Option<&Generated>,
    indexes: &[Index],
    history: History,
) -> Vec<String> {
    let mut words = program();
    let fixed = [
        "build",
        "--isolation=chroot",
        // With it a build step could leave its root for the builder's; it is not among the defaults in the root either.
        "--cap-drop=CAP_SYS_CHROOT",
        // The relay's address has the secret in it.
        "--http-proxy=false",
        // The relay speaks without TLS.
        "--tls-verify=false",
        "--retry=0",
        "--pull",
        "--identity-label=false",
    ];
    words.extend(fixed.map(str::to_owned));
    words.push("--layers".to_owned());
    if recipe.no_cache {
        words.push("--no-cache".to_owned());
    }
    if history == History::LeftOut {
        words.push("--omit-history".to_owned());
    }
    for kind in indexes.iter().map(Index::kind) {
        for place in kind.places() {
            // Seen by the steps, and not a part of the image. What the file lies on has the last two, and in a user
            // namespace nobody takes them away.
            let volume = format!("{}:{place}:ro,nosuid,nodev", root::configuration_of(kind));
            words.extend(["--volume".to_owned(), volume]);
        }
    }
    for (name, value) in &recipe.build_args {
        words.extend(["--build-arg".to_owned(), format!("{name}={value}")]);
    }
    for (name, value) in &recipe.labels {
        words.extend(["--label".to_owned(), format!("{name}={value}")]);
    }
    for secret in &recipe.secrets {
        let file = format!("id={},src={}/{}", secret.id, engine::BUILDER_SECRETS, secret.id);
        words.extend(["--secret".to_owned(), file]);
    }
    if let Some(target) = &recipe.target {
        words.extend(["--target".to_owned(), target.clone()]);
    }
    let context = Path::new(root::CONTEXT);
    let beside = Path::new(root::RECIPE);
    let file = match generated {
        Some(_) => beside.join(generate::DOCKERFILE),
        None => context.join(dockerfile(recipe).0),
    };
    words.extend(["--file".to_owned(), file.display().to_string()]);
    if generated.is_some_and(|generated| !generated.ignores_itself) {
        let ignore = beside.join(generate::IGNORE);
        words.extend(["--ignorefile".to_owned(), ignore.display().to_string()]);
    }
    words.extend(["--tag".to_owned(), OWN_NAME.to_owned()]);
    words.push(context.join(&recipe.directory).display().to_string());
    words
}

pub(crate) fn push_arguments() -> Vec<String> {
    let mut words = program();
    // Compressed for the way only.
    words.extend(["push", "--quiet", "--compression-format=zstd", "--compression-level=1"].map(str::to_owned));
    words.extend([OWN_NAME.to_owned(), format!("oci:{}/{}:latest", root::OUT, take::IMAGE)]);
    words
}

#[cfg(test)]
mod tests {
    use model::RecipeSecret;

    use super::*;

    #[test]
    fn what_buildah_is_told() {
        let recipe = Recipe {
            tags: vec!["x".to_owned()],
            directory: "app".to_owned(),
            build_args: vec![("A".to_owned(), "1 2".to_owned())],
            labels: vec![("l".to_owned(), String::new())],
            target: Some("final".to_owned()),
            secrets: vec![RecipeSecret {
                id: "npm".to_owned(),
                env: "NPM_TOKEN".to_owned(),
            }],
            ..Recipe::default()
        };
        let words = build_arguments(&recipe, None, &[], History::Kept);
        let expected = [
            "--pull",
            "--identity-label=false",
            "--layers",
            "--build-arg",
            "A=1 2",
            "--label",
            "l=",
            "--secret",
            "id=npm,src=/run/homerun/secrets/npm",
            "--target",
            "final",
            "--file",
            "/build/context/app/Dockerfile",
            "--tag",
            "homerun.build/image:latest",
            "/build/context/app",
        ];
        assert!(words.ends_with(&expected.map(str::to_owned)), "{words:?}");
        assert!(words.contains(&"--cap-drop=CAP_SYS_CHROOT".to_owned()));
        assert!(!words.contains(&"--omit-history".to_owned()));
        assert!(!words.contains(&"--volume".to_owned()));
        let other = Recipe {
            no_cache: true,
            dockerfile: "d/File".to_owned(),
            ..Recipe::default()
        };
        let indexes = ["pip=https://pypi.org/simple", "npm=https://registry.npmjs.org"];
        let indexes = indexes.map(|index| Index::parse(index).expect("an index"));
        let plain = build_arguments(&other, None, &indexes, History::LeftOut);
        for volume in [
            "/etc/homerun/pip:/etc/pip.conf:ro,nosuid,nodev",
            "/etc/homerun/npm:/usr/local/etc/npmrc:ro,nosuid,nodev",
        ] {
            assert!(plain.contains(&volume.to_owned()), "{plain:?}");
        }
        assert!(plain.contains(&"--omit-history".to_owned()));
        assert!(plain.contains(&"--no-cache".to_owned()));
        assert!(plain.contains(&"/build/context/d/File".to_owned()));
        assert_eq!(plain.last().map(String::as_str), Some("/build/context/"));
    }
}
