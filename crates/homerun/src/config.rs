//! What `homerun up` is told: flags beat `HOMERUN_*` variables, these beat the file, the file beats the defaults.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use engine::Egress;
use model::{ProjectId, Region, Sandbox, Scheme};
use serde::Deserialize;

/// Read when it is there and no other file is named.
const FILE: &str = "/etc/homerun/homerun.toml";

/// With less buildah itself does not run, in bytes.
const LEAST_BUILD_MEMORY: u64 = 128 << 20;

/// Everything that can be said by flag or variable.
#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Where everything durable is kept [default: /var/lib/homerun]
    #[arg(long, env = "HOMERUN_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens: gcloud's proxy, the CLI, the registry [default: 127.0.0.1:8787]
    #[arg(long, env = "HOMERUN_API", value_name = "ADDRESS")]
    api: Option<SocketAddr>,
    /// Where services answer plain HTTP [default: 127.0.0.1:8081]
    #[arg(long, env = "HOMERUN_HTTP", value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Where services answer HTTPS [default: 127.0.0.1:8443]
    #[arg(long, env = "HOMERUN_HTTPS", value_name = "ADDRESS")]
    https: Option<SocketAddr>,
    /// How long an instance without a request is kept, such as 90s or 15m [default: 15m]
    #[arg(long, env = "HOMERUN_IDLE_RETENTION", value_name = "TIME", value_parser = duration)]
    idle_retention: Option<Duration>,
    /// How long instances run on when Homerun has died, for the next one to take them over; 0 ends them at once
    /// [default: 60s]
    #[arg(long, env = "HOMERUN_ADOPTION_WINDOW", value_name = "TIME", value_parser = duration)]
    adoption_window: Option<Duration>,
    /// Most sandboxes that are made in advance and wait for their start, of all revisions together [default: 256]
    #[arg(long, env = "HOMERUN_PARKED", value_name = "COUNT")]
    parked: Option<u32>,
    /// Below which services have their hosts [default: a.run.localhost]
    #[arg(long, env = "HOMERUN_DOMAIN", value_name = "DOMAIN", value_parser = domain)]
    domain: Option<String>,
    /// The project's id [default: my-project]
    #[arg(long, env = "HOMERUN_PROJECT", value_name = "ID")]
    project: Option<ProjectId>,
    /// The region of calls that name none [default: us-central1]
    #[arg(long, env = "HOMERUN_REGION", value_name = "REGION")]
    region: Option<Region>,
    /// Of the URLs that services are told to have: https, or http for quick trials [default: https]
    #[arg(long, env = "HOMERUN_URL_SCHEME", value_name = "SCHEME", value_parser = scheme)]
    url_scheme: Option<Scheme>,
    /// Where instances may call: internet (no private range, no address of this machine), or off [default: internet]
    #[arg(long, env = "HOMERUN_EGRESS", value_name = "WHERE", value_parser = egress)]
    egress: Option<Egress>,
    /// Who makes the sandboxes of gen2: own, or crun [default: own]
    #[arg(long, env = "HOMERUN_RUNTIME", value_name = "RUNTIME", value_parser = runtime)]
    runtime: Option<engine::Maker>,
    /// What revisions run in that name no execution environment: gen1, which is gVisor, or gen2, a full Linux
    /// [default: gen2]
    #[arg(long, env = "HOMERUN_DEFAULT_EXECUTION_ENVIRONMENT", value_name = "GENERATION", value_parser = generation)]
    default_execution_environment: Option<Sandbox>,
    /// Most bytes that the registry's blobs may have together, such as 10GiB; refused beyond [default: no bound]
    #[arg(long, env = "HOMERUN_REGISTRY_QUOTA", value_name = "SIZE", value_parser = size)]
    registry_quota: Option<u64>,
    /// Most bytes that layers of earlier builds may have together, such as 10GiB; the oldest go first [default: 10GiB]
    #[arg(long, env = "HOMERUN_BUILD_CACHE", value_name = "SIZE", value_parser = size)]
    build_cache: Option<u64>,
    /// Memory of one build, such as 4GiB [default: 4GiB]
    #[arg(long, env = "HOMERUN_BUILD_MEMORY", value_name = "SIZE", value_parser = size)]
    build_memory: Option<u64>,
    /// Most bytes that one build may write to the disk, such as 20GiB [default: 20GiB]
    #[arg(long, env = "HOMERUN_BUILD_DISK", value_name = "SIZE", value_parser = size)]
    build_disk: Option<u64>,
    /// Package index that build steps may read, such as pip=https://pypi.org/simple; one for each of pip, npm,
    /// cargo, go and apt [default: none]
    #[arg(long, env = "HOMERUN_BUILD_INDEX", value_name = "KIND=URL", value_parser = build::Index::parse,
        value_delimiter = ',', hide_env_values = true)]
    build_index: Vec<build::Index>,
    /// Base image for sources without a Dockerfile, such as python=docker.io/library/python:3.13-slim; may be repeated
    #[arg(
        long,
        env = "HOMERUN_BUILD_BASE",
        value_name = "NAME=IMAGE",
        value_delimiter = ',',
        value_parser = build::base_pair
    )]
    build_base: Vec<(build::Base, String)>,
    /// Image of a builder whose buildpacks build sources without a Dockerfile, such as
    /// gcr.io/buildpacks/builder:google-22 [default: none; a Dockerfile is written for them]
    #[arg(long, env = "HOMERUN_BUILD_BUILDER", value_name = "IMAGE", value_parser = image_name)]
    build_builder: Option<String>,
    /// File with a passphrase for the keys of secrets; once given, it is needed at every start [default: none]
    #[arg(long, env = "HOMERUN_SECRETS_PASSPHRASE_FILE", value_name = "FILE")]
    secrets_passphrase_file: Option<PathBuf>,
    /// The configuration file [default: /etc/homerun/homerun.toml, when it is there]
    #[arg(long, env = "HOMERUN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The file's keys are the flags' names.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(clippy::struct_field_names, reason = "named after the flags")]
struct File {
    data_dir: Option<PathBuf>,
    api: Option<SocketAddr>,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    idle_retention: Option<String>,
    adoption_window: Option<String>,
    parked: Option<u32>,
    domain: Option<String>,
    project: Option<ProjectId>,
    region: Option<Region>,
    url_scheme: Option<String>,
    egress: Option<String>,
    runtime: Option<String>,
    default_execution_environment: Option<String>,
    registry_quota: Option<String>,
    build_cache: Option<String>,
    build_memory: Option<String>,
    build_disk: Option<String>,
    build_index: Option<Vec<String>>,
    #[serde(default)]
    build_base: BTreeMap<String, String>,
    build_builder: Option<String>,
    secrets_passphrase_file: Option<PathBuf>,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) api: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) idle_retention: Duration,
    pub(crate) adoption_window: Duration,
    pub(crate) parked: u32,
    pub(crate) domain: String,
    pub(crate) project: ProjectId,
    pub(crate) region: Region,
    pub(crate) url_scheme: Scheme,
    pub(crate) egress: Egress,
    pub(crate) runtime: engine::Maker,
    pub(crate) default_execution_environment: Sandbox,
    /// Bytes; None is no bound.
    pub(crate) registry_quota: Option<u64>,
    /// Bytes of all caches of builds together.
    pub(crate) build_cache: u64,
    /// Bytes of one build.
    pub(crate) build_memory: u64,
    /// Bytes that one build writes.
    pub(crate) build_disk: u64,
    /// What package managers in builds read: at most one of a kind.
    pub(crate) build_indexes: Vec<build::Index>,
    /// Of sources without a Dockerfile.
    pub(crate) build_bases: build::Bases,
    /// The builder's image of those that are built by buildpacks.
    pub(crate) build_builder: Option<String>,
    /// Of the keys of secrets.
    pub(crate) secrets_passphrase_file: Option<PathBuf>,
}

impl Config {
    /// Reads the file, touches nothing else.
    pub(crate) fn of(flags: Flags, is_root: bool) -> anyhow::Result<Self> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None if Path::new(FILE).exists() => read(Path::new(FILE))?,
            None => File::default(),
        };
        let told = |key: &'static str| move |why: String| anyhow::anyhow!("{key}: {why}");
        let file_retention = file
            .idle_retention
            .as_deref()
            .map(duration)
            .transpose()
            .map_err(told("idle-retention"))?;
        let file_window = file
            .adoption_window
            .as_deref()
            .map(duration)
            .transpose()
            .map_err(told("adoption-window"))?;
        let file_domain = file.domain.as_deref().map(domain).transpose().map_err(told("domain"))?;
        let file_scheme = file
            .url_scheme
            .as_deref()
            .map(scheme)
            .transpose()
            .map_err(told("url-scheme"))?;
        let file_egress = file.egress.as_deref().map(egress).transpose().map_err(told("egress"))?;
        let file_runtime = file
            .runtime
            .as_deref()
            .map(runtime)
            .transpose()
            .map_err(told("runtime"))?;
        let file_generation = file
            .default_execution_environment
            .as_deref()
            .map(generation)
            .transpose()
            .map_err(told("default-execution-environment"))?;
        let file_quota = file
            .registry_quota
            .as_deref()
            .map(size)
            .transpose()
            .map_err(told("registry-quota"))?;
        let file_cache = file
            .build_cache
            .as_deref()
            .map(size)
            .transpose()
            .map_err(told("build-cache"))?;
        let file_memory = file
            .build_memory
            .as_deref()
            .map(size)
            .transpose()
            .map_err(told("build-memory"))?;
        let file_disk = file
            .build_disk
            .as_deref()
            .map(size)
            .transpose()
            .map_err(told("build-disk"))?;
        let file_index = file.build_index.unwrap_or_default();
        let file_index = file_index
            .iter()
            .map(|text| build::Index::parse(text))
            .collect::<Result<Vec<_>, _>>()
            .map_err(told("build-index"))?;
        let mut build_bases = build::Bases::default();
        for (name, image) in &file.build_base {
            let base: build::Base = name
                .parse()
                .map_err(|why: build::BaseError| anyhow::anyhow!("build-base: {why}"))?;
            build_bases
                .set(base, image)
                .map_err(|why| anyhow::anyhow!("build-base.{name}: {why}"))?;
        }
        for (base, image) in &flags.build_base {
            build_bases.set(*base, image)?;
        }
        let file_builder = file
            .build_builder
            .as_deref()
            .map(image_name)
            .transpose()
            .map_err(told("build-builder"))?;
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self {
            data_dir: match flags.data_dir.or(file.data_dir) {
                Some(dir) => std::path::absolute(dir)?,
                None => default_data_dir(is_root)?,
            },
            api: flags.api.or(file.api).unwrap_or(loopback(8787)),
            http: flags.http.or(file.http).unwrap_or(loopback(8081)),
            https: flags.https.or(file.https).unwrap_or(loopback(8443)),
            parked: flags.parked.or(file.parked).unwrap_or(capacity::parking::MOST),
            idle_retention: flags
                .idle_retention
                .or(file_retention)
                .unwrap_or(Duration::from_mins(15)),
            adoption_window: flags.adoption_window.or(file_window).unwrap_or(Duration::from_mins(1)),
            domain: flags
                .domain
                .or(file_domain)
                .unwrap_or_else(|| "a.run.localhost".to_owned()),
            project: match flags.project.or(file.project) {
                Some(project) => project,
                None => ProjectId::parse("my-project")?,
            },
            region: match flags.region.or(file.region) {
                Some(region) => region,
                None => Region::parse("us-central1")?,
            },
            url_scheme: flags.url_scheme.or(file_scheme).unwrap_or(Scheme::Https),
            egress: flags.egress.or(file_egress).unwrap_or(Egress::Internet),
            runtime: flags.runtime.or(file_runtime).unwrap_or_default(),
            default_execution_environment: flags
                .default_execution_environment
                .or(file_generation)
                .unwrap_or(Sandbox::Gen2),
            registry_quota: flags.registry_quota.or(file_quota),
            build_cache: flags.build_cache.or(file_cache).unwrap_or(10 << 30),
            build_memory: match flags.build_memory.or(file_memory) {
                Some(less) if less < LEAST_BUILD_MEMORY => {
                    bail!("--build-memory: {less} bytes are less than {LEAST_BUILD_MEMORY}, the least")
                }
                given => given.unwrap_or(4 << 30),
            },
            build_disk: flags.build_disk.or(file_disk).unwrap_or(20 << 30),
            build_indexes: {
                let given = if flags.build_index.is_empty() {
                    file_index
                } else {
                    flags.build_index
                };
                for kind in build::Kind::ALL {
                    let named = given.iter().filter(|index| index.kind() == kind).count();
                    if named > 1 {
                        bail!("--build-index: {kind} has one index, and {named} are named");
                    }
                }
                given
            },
            build_bases,
            build_builder: flags.build_builder.or(file_builder),
            secrets_passphrase_file: flags.secrets_passphrase_file.or(file.secrets_passphrase_file),
        })
    }
}

fn image_name(text: &str) -> Result<String, String> {
    match text.parse::<image::Reference>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("\"{text}\" is not the name of an image: {error}")),
    }
}

fn read(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a configuration", path.display()))
}

fn default_data_dir(is_root: bool) -> anyhow::Result<PathBuf> {
    if is_root {
        return Ok(PathBuf::from("/var/lib/homerun"));
    }
    let var = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    match var("XDG_DATA_HOME").or_else(|| Some(var("HOME")?.join(".local/share"))) {
        Some(share) => Ok(share.join("homerun")),
        None => bail!("no place for data: set --data-dir, since neither XDG_DATA_HOME nor HOME is set"),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a time, such as 90s, 15m or 1h");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(wrong)
}

/// Bytes: a whole number with an optional unit.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is not a size, such as 500MiB, 10GiB or 1000000");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(bytes).ok_or_else(wrong)
}

fn scheme(text: &str) -> Result<Scheme, String> {
    match text {
        "http" => Ok(Scheme::Http),
        "https" => Ok(Scheme::Https),
        _ => Err(format!("\"{text}\" is neither http nor https")),
    }
}

fn egress(text: &str) -> Result<Egress, String> {
    match text {
        "internet" => Ok(Egress::Internet),
        "off" => Ok(Egress::Off),
        _ => Err(format!("\"{text}\" is neither internet nor off")),
    }
}

fn runtime(text: &str) -> Result<engine::Maker, String> {
    match text {
        "own" => Ok(engine::Maker::Own),
        "crun" => Ok(engine::Maker::Crun),
        _ => Err(format!("\"{text}\" is neither own nor crun")),
    }
}

fn generation(text: &str) -> Result<Sandbox, String> {
    match text {
        "gen1" => Ok(Sandbox::Gen1),
        "gen2" => Ok(Sandbox::Gen2),
        _ => Err(format!("\"{text}\" is neither gen1 nor gen2")),
    }
}

fn domain(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.len() <= 180 && text.contains('.') && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "\"{text}\" is not a domain in lower case with at least two labels"
        ))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn of(words: &[&str]) -> anyhow::Result<Config> {
        let line = Line::try_parse_from(std::iter::once(&"up").chain(words))?;
        Config::of(line.flags, true)
    }

    #[test]
    fn flags_beat_the_file_and_the_file_beats_defaults() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("homerun.toml");
        std::fs::write(
            &file,
            "http = \"127.0.0.1:9000\"\nidle-retention = \"5s\"\nproject = \"file-project\"\n",
        )
        .expect("written");
        let path = file.to_str().expect("text");
        let config = of(&["--config", path, "--idle-retention", "3s"]).expect("a configuration");
        assert_eq!(config.http.port(), 9000);
        assert_eq!(config.idle_retention, Duration::from_secs(3));
        assert_eq!(config.project.as_str(), "file-project");
        assert_eq!(config.https.port(), 8443);
        assert_eq!(config.runtime, engine::Maker::Own);
        std::fs::write(&file, "runtime = \"crun\"\n").expect("written");
        let config = of(&["--config", path]).expect("a configuration");
        assert_eq!(config.runtime, engine::Maker::Crun);
        assert_eq!(config.default_execution_environment, Sandbox::Gen2);
        std::fs::write(&file, "default-execution-environment = \"gen1\"\n").expect("written");
        let config = of(&["--config", path]).expect("a configuration");
        assert_eq!(config.default_execution_environment, Sandbox::Gen1);
        std::fs::write(&file, "default-execution-environment = \"gen0\"\n").expect("written");
        let error = format!("{:#}", of(&["--config", path]).expect_err("a wrong generation"));
        assert!(
            error.contains("default-execution-environment") && error.contains("gen0"),
            "{error}"
        );
        std::fs::write(&file, "htp = \"127.0.0.1:9000\"\n").expect("written");
        let error = format!("{:#}", of(&["--config", path]).expect_err("unknown key"));
        assert!(error.contains("htp"), "{error}");
        std::fs::write(&file, "domain = \"UPPER\"\n").expect("written");
        let error = format!("{:#}", of(&["--config", path]).expect_err("a wrong domain"));
        assert!(error.contains("domain") && error.contains("UPPER"), "{error}");
    }

    #[test]
    fn times() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("7", 7)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "1d", "-1s", "99999999999999999999h", "18446744073709551615h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("7", 7), ("500MiB", 500 << 20), ("10GiB", 10 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "-1", "10GB", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(
            of(&["--registry-quota", "1GiB"]).expect("a quota").registry_quota,
            Some(1 << 30)
        );
        assert_eq!(of(&[]).expect("none").registry_quota, None);
    }

    #[test]
    fn an_index_of_packages() {
        let shown = |config: Config| format!("{:?}", config.build_indexes);
        let pypi = "[pip=https://pypi.org/simple/]";
        let index = "pip=https://pypi.org/simple";
        assert_eq!(shown(of(&["--build-index", index]).expect("one")), pypi);
        assert_eq!(shown(of(&[]).expect("none")), "[]");
        let two = "pip=https://pypi.org/simple,npm=https://registry.npmjs.org";
        let both = "[pip=https://pypi.org/simple/, npm=https://registry.npmjs.org/]";
        assert_eq!(shown(of(&["--build-index", two]).expect("two kinds")), both);
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("homerun.toml");
        std::fs::write(&file, format!("build-index = [\"{index}\"]\n")).expect("written");
        let path = file.to_str().expect("text");
        assert_eq!(shown(of(&["--config", path]).expect("a configuration")), pypi);
        let error = of(&["--build-index", index, "--build-index", index]).expect_err("two of a kind");
        assert!(error.to_string().contains("pip has one index"), "{error}");
        std::fs::write(&file, "build-index = [\"maven=https://repo.example\"]\n").expect("written");
        let error = of(&["--config", path]).expect_err("another kind").to_string();
        assert!(
            error.contains("build-index: an index of maven is not served"),
            "{error}"
        );
    }

    #[test]
    fn base_images_are_set_one_by_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("homerun.toml");
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        let path = file.to_str().expect("text");
        write("[build-base]\npython = \"mirror.example/python:3\"\nnode = \"mirror.example/node:24\"\n");
        let set = [
            "--config",
            path,
            "--build-base",
            "node=mirror.example/node:26,go=mirror.example/go:1",
        ];
        let bases = of(&set).expect("a configuration").build_bases;
        for (base, image) in [
            (build::Base::Python, "mirror.example/python:3"),
            (build::Base::Node, "mirror.example/node:26"),
            (build::Base::Go, "mirror.example/go:1"),
            (build::Base::Static, build::Base::Static.default_image()),
        ] {
            assert_eq!(bases.of(base), image);
        }
        for (text, told) in [
            ("[build-base]\nperl = \"x\"\n", "\"perl\" is none of python"),
            (
                "[build-base]\ngo = \"a b\"\n",
                "build-base.go: \"a b\" is not the name of an image",
            ),
        ] {
            write(text);
            let error = format!("{:#}", of(&["--config", path]).expect_err("refused"));
            assert!(error.contains(told), "{error}");
        }
        assert!(of(&["--build-base", "python"]).is_err());
    }

    #[test]
    fn wrong_words_are_refused_before_anything_is_touched() {
        for words in [
            ["--api", "localhost"],
            ["--domain", "x"],
            ["--project", "P"],
            ["--url-scheme", "ftp"],
            ["--runtime", "runc"],
            ["--default-execution-environment", "gen3"],
            ["--idle-retention", "soon"],
            ["--egress", "everywhere"],
            ["--build-index", "https://pypi.org/simple"],
        ] {
            assert!(of(&words).is_err(), "{words:?}");
        }
    }
}
