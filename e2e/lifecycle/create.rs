//! `creator`: analyzes, detects, restores, builds and exports.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Gid, Uid};
use serde_json::{Value, json};

use crate::{
    Failure, at,
    registry::{Repository, digest},
};

/// What it speaks, as `lifecycle.toml` of the tests' builder says.
const APIS: [&str; 2] = ["0.10", "0.12"];
const FLAGS: [&str; 10] = [
    "-app",
    "-cache-dir",
    "-cache-image",
    "-gid",
    "-layers",
    "-order",
    "-platform",
    "-process-type",
    "-run-image",
    "-uid",
];

struct Inputs {
    flags: BTreeMap<String, String>,
    skips_restore: bool,
    image: String,
}

impl Inputs {
    fn read(words: &[String]) -> Result<Self, Failure> {
        let wrong = at::<String>(3, "parse arguments");
        let (mut flags, mut skips_restore, mut images) = (BTreeMap::new(), false, Vec::new());
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if word == "-skip-restore" {
                skips_restore = true;
            } else if FLAGS.contains(&word.as_str()) {
                let value = words.next().ok_or_else(|| wrong(format!("{word} has no value")))?;
                flags.insert(word.clone(), value.clone());
            } else if word.starts_with('-') {
                return Err(wrong(format!("flag provided but not defined: {word}")));
            } else {
                images.push(word.clone());
            }
        }
        let [image] = images.as_slice() else {
            return Err(wrong(format!("received {} arguments, but expected 1", images.len())));
        };
        Ok(Self {
            flags,
            skips_restore,
            image: image.clone(),
        })
    }

    fn of(&self, flag: &str) -> Result<&str, Failure> {
        let value = self.flags.get(flag);
        value
            .map(String::as_str)
            .ok_or_else(|| at(3, "parse arguments")(format!("{flag} is not given")))
    }

    fn number(&self, flag: &str) -> Result<u32, Failure> {
        self.of(flag)?.parse().map_err(at(3, flag))
    }
}

/// One buildpack of the group that was detected.
struct Buildpack {
    id: String,
    /// As its directories are called.
    name: String,
    dir: PathBuf,
}

pub(crate) fn create(words: &[String]) -> Result<(), Failure> {
    let api = std::env::var("CNB_PLATFORM_API").unwrap_or_default();
    if !APIS.contains(&api.as_str()) {
        return Err(at(11, "platform API")(format!("{api:?} is incompatible")));
    }
    let inputs = Inputs::read(words)?;
    let (app, layers) = (inputs.of("-app")?, inputs.of("-layers")?);
    // While it is root, it owns what it is given.
    let cache = inputs.flags.get("-cache-dir").map(Path::new);
    let (user, group) = (inputs.number("-uid")?, inputs.number("-gid")?);
    for path in [Some(Path::new(layers)), cache].into_iter().flatten() {
        std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(at(1, "chown volumes"))?;
    }
    let home = become_user(user, group).map_err(at(1, "exec as the user"))?;

    println!("===> ANALYZING");
    let image = Repository::of(&inputs.image).map_err(at(32, "image"))?;
    let earlier = image.manifest().map_err(at(32, "read the image"))?;
    println!(
        "previous image: {}",
        if earlier.is_some() { "found" } else { "not found" }
    );
    let run = Repository::of(inputs.of("-run-image")?).map_err(at(32, "run image"))?;
    let run_manifest = run.manifest().map_err(at(32, "read the run image"))?;
    let run_manifest = run_manifest.ok_or_else(|| at(32, "run image")("it is not there"))?;
    let run_config = run
        .blob(&run_manifest["config"]["digest"])
        .map_err(at(32, "read the run image"))?;
    let run_config: Value = serde_json::from_slice(&run_config).map_err(at(32, "read the run image"))?;

    println!("===> DETECTING");
    let order = inputs.flags.get("-order").map_or("/cnb/order.toml", String::as_str);
    let found = detect(&inputs, order, &home)?;
    let cache_image = inputs.flags.get("-cache-image").map(|name| Repository::of(name));
    let cache_image = cache_image.transpose().map_err(at(1, "cache image"))?;

    println!("===> RESTORING");
    if !inputs.skips_restore {
        let stored = match (cache, &cache_image) {
            (Some(dir), _) => fs::read(dir.join("layers.tar")).ok(),
            (None, Some(image)) => match image.manifest().map_err(at(42, "read the cache"))? {
                Some(manifest) => {
                    let layer = image.blob(&manifest["layers"][0]["digest"]);
                    Some(layer.map_err(at(42, "read the cache"))?)
                }
                None => None,
            },
            (None, None) => None,
        };
        if let Some(stored) = stored {
            tar::Archive::new(stored.as_slice())
                .unpack(layers)
                .map_err(at(42, "restore"))?;
            println!("restored");
        }
    }

    println!("===> BUILDING");
    for buildpack in &found {
        let own = Path::new(layers).join(&buildpack.name);
        fs::create_dir_all(&own).map_err(at(52, "make a directory"))?;
        let mut command = Command::new(buildpack.dir.join("bin/build"));
        command
            .env("CNB_LAYERS_DIR", &own)
            .env("CNB_BP_PLAN_PATH", "/tmp/plan.toml")
            .args([
                own.as_os_str(),
                inputs.of("-platform")?.as_ref(),
                "/tmp/plan.toml".as_ref(),
            ]);
        let status = run_buildpack(&inputs, buildpack, &mut command, &home).map_err(at(52, "run a buildpack"))?;
        if status != Some(0) {
            return Err(at(51, "failed to build")(format!("exit status {status:?}")));
        }
    }

    println!("===> EXPORTING");
    let export = at::<String>(62, "export");
    let image_text = export_image(&inputs, &found, &run_manifest, &run_config, &image).map_err(&export)?;
    println!("*** Images ({image_text}):");
    let report = format!("[image]\ndigest = \"{image_text}\"\n");
    fs::write(Path::new(layers).join("report.toml"), report).map_err(at(62, "write the report"))?;
    let kept = kept_layers(layers, &found).map_err(at(62, "read the layers"))?;
    match (cache, &cache_image) {
        (Some(dir), _) => fs::write(dir.join("layers.tar"), kept).map_err(at(62, "write the cache"))?,
        (None, Some(image)) => {
            let config = json!({"architecture": "amd64", "os": "linux", "config": {},
                "rootfs": {"type": "layers", "diff_ids": [digest(&kept)]}});
            image.push(Vec::new(), &[kept], &config).map_err(&export)?;
        }
        (None, None) => {}
    }
    if Path::new(app).join("breaks-at-the-end").exists() {
        return Err(export("asked to fail when all is pushed".to_owned()));
    }
    Ok(())
}

/// Its rest is done as the image's user. Answers where that is at home.
fn become_user(user: u32, group: u32) -> io::Result<String> {
    if !rustix::process::getuid().is_root() {
        return Err(io::Error::other("it was not started as root"));
    }
    let gid = Gid::from_raw(group);
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(user);
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let accounts = fs::read_to_string("/etc/passwd")?;
    let account = accounts.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let of_user = account
        .into_iter()
        .find(|fields| fields.get(2).is_some_and(|id| *id == user.to_string()));
    let home = of_user.and_then(|fields| fields.get(5).map(|home| (*home).to_owned()));
    home.ok_or_else(|| io::Error::other(format!("unknown user id {user}")))
}

fn detect(inputs: &Inputs, order: &str, home: &str) -> Result<Vec<Buildpack>, Failure> {
    let failed = at::<String>(22, "detect");
    let text = fs::read_to_string(order).map_err(at(22, "read the order"))?;
    let order: toml::Table = toml::from_str(&text).map_err(at(22, "read the order"))?;
    let mut broken = false;
    for one in order["order"].as_array().into_iter().flatten() {
        let mut group = Vec::new();
        let mut all = true;
        for member in one["group"].as_array().into_iter().flatten() {
            let (Some(id), Some(version)) = (member["id"].as_str(), member["version"].as_str()) else {
                return Err(failed("a member without id or version".to_owned()));
            };
            let name = id.replace('/', "_");
            let buildpack = Buildpack {
                id: id.to_owned(),
                dir: Path::new("/cnb/buildpacks").join(&name).join(version),
                name,
            };
            let mut command = Command::new(buildpack.dir.join("bin/detect"));
            command.env("CNB_BUILD_PLAN_PATH", "/tmp/detected.toml");
            let status = run_buildpack(inputs, &buildpack, &mut command, home).map_err(at(22, "run a buildpack"))?;
            match status {
                Some(0) => println!("pass: {id}@{version}"),
                Some(100) => println!("fail: {id}@{version}"),
                _ => println!("err:  {id}@{version} ({status:?})"),
            }
            broken |= ![Some(0), Some(100)].contains(&status);
            all &= status == Some(0);
            group.push(buildpack);
        }
        if all {
            return Ok(group);
        }
    }
    let code = if broken { 21 } else { 20 };
    Err(at(code, "detect")("no buildpack groups passed detection"))
}

/// Runs one of its programs with nothing of our own environment but what the interface lets through.
fn run_buildpack(inputs: &Inputs, buildpack: &Buildpack, command: &mut Command, home: &str) -> io::Result<Option<i32>> {
    command.env("HOME", home).current_dir(&inputs.flags["-app"]);
    let own: Vec<_> = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    command.env_clear().envs(own);
    for name in ["PATH", "CNB_STACK_ID", "HTTP_PROXY", "HTTPS_PROXY"] {
        if let Ok(value) = std::env::var(name) {
            command.env(name, value);
        }
    }
    let platform = Path::new(&inputs.flags["-platform"]);
    for entry in fs::read_dir(platform.join("env"))? {
        let entry = entry?;
        command.env(entry.file_name(), fs::read_to_string(entry.path())?);
    }
    command
        .env("CNB_BUILDPACK_DIR", &buildpack.dir)
        .env("CNB_PLATFORM_DIR", platform);
    Ok(command.status()?.code())
}

/// An archive that has nothing of the time at which it is made.
fn archive() -> tar::Builder<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.mode(tar::HeaderMode::Deterministic);
    archive.follow_symlinks(false);
    archive
}

/// Adds a directory with all that is below it, by name.
fn append(archive: &mut tar::Builder<Vec<u8>>, name: &Path, dir: &Path) -> io::Result<()> {
    archive.append_dir(name, dir)?;
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = name.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            append(archive, &name, &entry.path())?;
        } else {
            archive.append_path_with_name(entry.path(), name)?;
        }
    }
    Ok(())
}

/// The layers of a buildpack that have one of the types.
fn layers_of(layers: &str, buildpack: &Buildpack, kind: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(layers).join(&buildpack.name))? {
        let path = entry?.path();
        let dir = path.with_extension("");
        if path.extension().is_none_or(|extension| extension != "toml") || !dir.is_dir() {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let read: toml::Table = toml::from_str(&text).map_err(io::Error::other)?;
        let types = read.get("types");
        if types.and_then(|types| types.get(kind)?.as_bool()) == Some(true) {
            found.push(dir);
        }
    }
    Ok(found)
}

/// The layers that the next build may have.
fn kept_layers(layers: &str, found: &[Buildpack]) -> io::Result<Vec<u8>> {
    let mut archive = self::archive();
    for buildpack in found {
        for dir in layers_of(layers, buildpack, "cache")? {
            let below = dir.strip_prefix(layers).map_err(io::Error::other)?;
            append(&mut archive, below, &dir)?;
        }
    }
    archive.into_inner()
}

fn export_image(
    inputs: &Inputs,
    found: &[Buildpack],
    run_manifest: &Value,
    run_config: &Value,
    image: &Repository,
) -> Result<String, String> {
    let told = |error: io::Error| error.to_string();
    let layers = &inputs.flags["-layers"];
    let mut new = Vec::new();
    let mut processes: Vec<toml::Value> = Vec::new();
    for buildpack in found {
        for dir in layers_of(layers, buildpack, "launch").map_err(told)? {
            let mut archive = self::archive();
            let path = dir.strip_prefix("/").unwrap_or(&dir);
            append(&mut archive, path, &dir).map_err(told)?;
            new.push(archive.into_inner().map_err(told)?);
        }
        let launch = Path::new(layers).join(&buildpack.name).join("launch.toml");
        if let Ok(text) = fs::read_to_string(launch) {
            let launch: toml::Table = toml::from_str(&text).map_err(|error| error.to_string())?;
            processes.extend(
                launch
                    .get("processes")
                    .and_then(|all| all.as_array())
                    .cloned()
                    .unwrap_or_default(),
            );
        }
    }
    let mut archive = self::archive();
    append(&mut archive, Path::new("workspace"), Path::new(&inputs.flags["-app"])).map_err(told)?;
    new.push(archive.into_inner().map_err(told)?);

    let mut archive = self::archive();
    archive
        .append_path_with_name("/cnb/lifecycle/launcher", "cnb/lifecycle/launcher")
        .map_err(told)?;
    let mut entrypoint = "/cnb/lifecycle/launcher".to_owned();
    for process in &processes {
        let kind = process["type"].as_str().ok_or("a process without a type")?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive
            .append_link(&mut header, format!("cnb/process/{kind}"), "/cnb/lifecycle/launcher")
            .map_err(told)?;
        let wanted = inputs.flags.get("-process-type");
        let is_default = process.get("default").and_then(toml::Value::as_bool) == Some(true);
        if wanted.map_or(is_default, |wanted| wanted == kind) {
            entrypoint = format!("/cnb/process/{kind}");
        }
    }
    let mut metadata = toml::Table::new();
    metadata.insert("processes".to_owned(), processes.into());
    let metadata = metadata.to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(metadata.len() as u64);
    header.set_mode(0o644);
    archive
        .append_data(&mut header, "layers/config/metadata.toml", metadata.as_bytes())
        .map_err(told)?;
    new.push(archive.into_inner().map_err(told)?);

    let mut config = run_config.clone();
    config["config"]["Entrypoint"] = json!([entrypoint]);
    config["config"]["WorkingDir"] = json!("/workspace");
    let ids: Vec<&str> = found.iter().map(|buildpack| buildpack.id.as_str()).collect();
    config["config"]["Labels"]["io.buildpacks.build.metadata"] = json!({ "buildpacks": ids }).to_string().into();
    let diff_ids = config["rootfs"]["diff_ids"].as_array_mut().ok_or("no diff ids")?;
    diff_ids.extend(new.iter().map(|layer| Value::from(digest(layer))));
    if let Some(config) = config.as_object_mut() {
        config.remove("history");
    }
    let there = run_manifest["layers"].as_array().cloned().unwrap_or_default();
    image.push(there, &new, &config)
}
