//! Images of the tests' own programs, as OCI layouts made on the spot with tar and sha256sum.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An OCI layout on disk: one image of the probe (`e2e/probe/main.rs`), or one manifest list of several.
/// Beside the probe there is `/broken` (`e2e/probe/broken.rs`).
#[derive(Debug)]
pub struct Layout {
    pub dir: PathBuf,
    /// Of what `index.json` points at: `sha256:...`.
    pub digest: String,
}

impl Layout {
    /// An image for this machine. `name` is what the probe answers at `/name`: another name is another image.
    ///
    /// # Errors
    /// When a file cannot be written, or tar or sha256sum fails.
    pub fn image(dir: &Path, name: &str) -> Result<Self> {
        Self::image_for(dir, name, "amd64")
    }

    /// The same for a machine of this architecture, as far as the image says.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub fn image_for(dir: &Path, name: &str, architecture: &str) -> Result<Self> {
        let mut image = write_image(dir, name, architecture)?;
        image["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        Self::finish(dir, image)
    }

    /// A manifest list: an image named `name` for linux/amd64, after two for other machines that hold the same but for
    /// the name.
    ///
    /// # Errors
    /// As [`Self::image`].
    pub fn list(dir: &Path, name: &str) -> Result<Self> {
        let mut manifests = Vec::new();
        for (os, architecture, name) in [
            ("linux", "arm64", "another CPU's"),
            ("windows", "amd64", "another system's"),
            ("linux", "amd64", name),
        ] {
            let mut image = write_image(dir, name, architecture)?;
            image["platform"] = json!({"os": os, "architecture": architecture});
            manifests.push(image);
        }
        let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let mut list = write_blob(dir, INDEX, list.to_string().as_bytes())?;
        list["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        Self::finish(dir, list)
    }

    /// An image of one program of this build, with the libraries that it is linked to.
    ///
    /// # Errors
    /// As [`Self::image`], or when ldd fails.
    pub fn of_program(dir: &Path, program: &Path) -> Result<Self> {
        let root = dir.join("root");
        fs::create_dir_all(&root)?;
        fs::copy(program, root.join("program"))?;
        for library in run(Command::new("ldd").arg(program))?
            .split_whitespace()
            .filter(|word| word.starts_with('/'))
        {
            let place = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(place.parent().context("a library lies in a directory")?)?;
            fs::copy(library, place)?;
        }
        let mut image = pack(
            dir,
            &root,
            "amd64",
            &json!({"Entrypoint": ["/program"], "User": "65532"}),
        )?;
        image["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        Self::finish(dir, image)
    }

    /// An image to build others from: the probe, which is not started by itself, a shell with a few programs, and
    /// busybox's server of files.
    ///
    /// # Errors
    /// As [`Self::image`], or when ldd fails.
    pub fn base(dir: &Path) -> Result<Self> {
        let root = dir.join("root");
        write_base(&root)?;
        let history = json!([{"created_by": "ADD layer.tar / # of the cases of builds"}]);
        let mut image = pack_with(dir, &root, "amd64", &json!({"Env": ["PATH=/bin"]}), Some(history))?;
        image["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        Self::finish(dir, image)
    }

    /// An image of what is below `dir/root`, with these settings.
    pub(crate) fn of_root(dir: &Path, settings: &Value) -> Result<Self> {
        let mut image = pack(dir, &dir.join("root"), "amd64", settings)?;
        image["annotations"] = json!({"org.opencontainers.image.ref.name": "latest"});
        Self::finish(dir, image)
    }

    fn finish(dir: &Path, entry: Value) -> Result<Self> {
        let digest = entry["digest"]
            .as_str()
            .context("a descriptor has a digest")?
            .to_owned();
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        fs::write(dir.join("index.json"), index.to_string())?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Self {
            dir: dir.to_owned(),
            digest,
        })
    }
}

/// The probe, a shell with a few programs, and busybox's server of files.
pub(crate) fn write_base(root: &Path) -> Result<()> {
    for made in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(made))?;
    }
    fs::copy(env!("PROBE"), root.join("probe"))?;
    for (program, name) in [
        ("/bin/bash", "sh"),
        ("/bin/cat", "cat"),
        ("/bin/ls", "ls"),
        ("/bin/sleep", "sleep"),
        ("/usr/bin/id", "id"),
        ("/usr/bin/unshare", "unshare"),
        ("/bin/busybox", "httpd"),
    ] {
        add_program(root, program, &format!("bin/{name}"))?;
    }
    Ok(())
}

/// A program at a path, with the libraries that it is linked to.
pub(crate) fn add_program(root: &Path, program: &str, at: &str) -> Result<()> {
    fs::copy(program, place(root, at)?).with_context(|| format!("copy {program}"))?;
    add_libraries(root, program)
}

/// The libraries that a program is linked to.
pub(crate) fn add_libraries(root: &Path, program: &str) -> Result<()> {
    // It fails on a program that needs no library.
    let needed = Command::new("ldd").arg(program).output()?.stdout;
    for library in String::from_utf8_lossy(&needed)
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        fs::copy(library, place(root, library)?)?;
    }
    Ok(())
}

fn place(root: &Path, path: &str) -> Result<PathBuf> {
    let place = root.join(path.trim_start_matches('/'));
    fs::create_dir_all(place.parent().context("a file lies in a directory")?)?;
    Ok(place)
}

/// The descriptor of a manifest, all of whose blobs lie in the layout.
fn write_image(dir: &Path, name: &str, architecture: &str) -> Result<Value> {
    let root = dir.join("root");
    fs::create_dir_all(root.join("etc"))?;
    fs::create_dir_all(root.join("tmp"))?;
    fs::copy(env!("PROBE"), root.join("probe"))?;
    fs::copy(env!("BROKEN"), root.join("broken"))?;
    fs::write(root.join("etc/name"), name)?;
    let settings =
        json!({"Entrypoint": ["/probe"], "Cmd": ["of", "image"], "Env": ["PATH=/", "FROM_IMAGE=yes"], "User": "65532"});
    pack(dir, &root, architecture, &settings)
}

/// An image of what is below `root`, in one layer.
fn pack(dir: &Path, root: &Path, architecture: &str, settings: &Value) -> Result<Value> {
    pack_with(dir, root, architecture, settings, None)
}

/// The same with a history, as images have that were built by steps.
fn pack_with(dir: &Path, root: &Path, architecture: &str, settings: &Value, history: Option<Value>) -> Result<Value> {
    let tar = dir.join("layer.tar");
    let mut command = Command::new("tar");
    command
        .args([
            "--create",
            "--format=ustar",
            "--owner=0",
            "--group=0",
            "--mtime=@0",
            "--sort=name",
        ])
        .arg(format!("--file={}", tar.display()))
        .arg(format!("--directory={}", root.display()))
        .arg(".");
    run(&mut command)?;
    let diff_id = digest(&tar)?;
    let mut command = Command::new("gzip");
    run(command.args(["--no-name", "--fast", "--force"]).arg(&tar))?;
    fs::remove_dir_all(root)?;
    let layer = dir.join("layer.tar.gz");
    let layer_blob = write_blob(dir, LAYER, &fs::read(&layer)?)?;
    fs::remove_file(layer)?;
    let mut config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    if let Some(history) = history {
        config["history"] = history;
    }
    let config = write_blob(dir, CONFIG, config.to_string().as_bytes())?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer_blob]});
    write_blob(dir, MANIFEST, manifest.to_string().as_bytes())
}

fn write_blob(dir: &Path, media_type: &str, content: &[u8]) -> Result<Value> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let temp = blobs.join("new");
    fs::write(&temp, content)?;
    let digest = digest(&temp)?;
    let hex = digest.strip_prefix("sha256:").context("as made below")?;
    fs::rename(&temp, blobs.join(hex))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
}

fn digest(file: &Path) -> Result<String> {
    let output = run(Command::new("sha256sum").arg(file))?;
    let hex = output.split_whitespace().next().context("sha256sum prints one")?;
    Ok(format!("sha256:{hex}"))
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
