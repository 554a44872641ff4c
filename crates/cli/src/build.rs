//! `builds ...`: images from source, in gcloud's words; and the build that `run deploy --source` begins with.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::flag::{self, Pairs};
use crate::format::{Column, yaml_text};
use crate::pack::{self, Make};
use crate::progress::Steps;
use crate::release::pause;
use crate::words::Listing;
use crate::{Error, Order, Outside, source};

const HOST: &str = "cloudbuild.googleapis.com";
const STORAGE: &str = "storage.googleapis.com";
const DOCKERFILE: &str = "Dockerfile";
/// From one look at a build to the next.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Builds {
    /// Build an image of a directory with a Dockerfile or by buildpacks, and show the log meanwhile
    Submit(Submit),
    /// List builds, newest first
    List {
        /// Only those that wait or run
        #[arg(long)]
        ongoing: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show one build
    Describe { build: String },
    /// Print the log of a build
    Log {
        build: String,
        /// Go on until it has ended
        #[arg(long)]
        stream: bool,
    },
    /// End builds that wait or run
    Cancel {
        #[arg(required = true)]
        builds: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// The directory
    #[arg(default_value = ".")]
    pub(crate) source: PathBuf,
    /// Name of the image, such as us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1
    #[arg(long, short, conflicts_with = "config")]
    pub(crate) tag: Option<String>,
    /// Dockerfile of another name, below the directory; with --tag
    #[arg(long, requires = "tag")]
    pub(crate) dockerfile: Option<PathBuf>,
    /// By buildpacks: image=NAME, and also builder=IMAGE and env=NAME=VALUE
    #[arg(long, value_parser = flag::pairs, value_name = "image=NAME,...", conflicts_with_all = ["tag", "config"])]
    pub(crate) pack: Option<Pairs>,
    /// YAML or JSON file with the build, in place of --tag [default: cloudbuild.yaml]
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Values for names that begin with _ in the file
    #[arg(long, value_parser = flag::pairs, value_name = "_KEY=VALUE,...")]
    pub(crate) substitutions: Vec<Pairs>,
    /// How long the build may take, such as 600s or 10m
    #[arg(long, value_parser = flag::duration)]
    pub(crate) timeout: Option<u64>,
    /// Return at once, wait for nothing
    #[arg(long = "async")]
    pub(crate) asynchronous: bool,
}

const COLUMNS: &[Column] = &[
    Column {
        heading: "ID",
        cell: |build| text(&build["id"]),
    },
    Column {
        heading: "CREATE_TIME",
        cell: |build| text(&build["createTime"]),
    },
    Column {
        heading: "DURATION",
        cell: duration,
    },
    Column {
        heading: "SOURCE",
        cell: |build| {
            let source = &build["source"]["storageSource"];
            format!("gs://{}/{}", text(&source["bucket"]), text(&source["object"]))
        },
    },
    Column {
        heading: "IMAGES",
        cell: |build| {
            let images = build["results"]["images"].as_array();
            images
                .and_then(|images| images.first())
                .map_or_else(|| "-".to_owned(), |image| text(&image["name"]))
        },
    },
    Column {
        heading: "STATUS",
        cell: |build| text(&build["status"]),
    },
];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn duration(build: &Value) -> String {
    let at = |field: &str| {
        build[field]
            .as_str()
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
    };
    match (at("startTime"), at("finishTime")) {
        (Some(start), Some(end)) => format!("{}S", end.as_second() - start.as_second()),
        _ => String::new(),
    }
}

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Builds) -> Result<(), Error> {
    match words {
        Builds::Submit(submit) => self::submit(outside, order, submit),
        Builds::List { ongoing, listing } => list(outside, order, *ongoing, listing),
        Builds::Describe { build } => {
            let server = Server::find(outside, order.global)?;
            let found = find(outside, &server, build)?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Builds::Log { build, stream } => {
            let server = Server::find(outside, order.global)?;
            let found = find(outside, &server, build)?;
            let mut log = Log::of(&found)?;
            if *stream {
                log.follow(outside, &server, build).map(drop)
            } else {
                log.more(outside, &server)
            }
        }
        Builds::Cancel { builds } => {
            let server = Server::find(outside, order.global)?;
            for build in builds {
                let path = format!("{}/{}:cancel", place(&server, "global"), escape(build));
                server.json(outside, &Method::POST, HOST, &path, Content::None)?;
                outside.say(&format!("Cancelled [{build}]."));
            }
            Ok(())
        }
    }
}

/// Path of the builds of a location.
fn place(server: &Server, location: &str) -> String {
    format!("/v1/projects/{}/locations/{location}/builds", escape(&server.project))
}

/// Builds have one name in all locations.
fn find(outside: &Outside<'_>, server: &Server, build: &str) -> Result<Value, Error> {
    server.get(outside, HOST, &format!("{}/{}", place(server, "global"), escape(build)))
}

fn list(outside: &mut Outside<'_>, order: &Order<'_>, ongoing: bool, listing: &Listing) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    let location = order.global.region.as_deref().unwrap_or("-");
    let mut query = String::new();
    if ongoing {
        query = format!("?filter={}", escape("status=\"WORKING\" OR status=\"QUEUED\""));
    }
    let mut found = server.get(outside, HOST, &format!("{}{query}", place(&server, &escape(location))))?;
    let builds = found["builds"].as_array_mut().map(std::mem::take).unwrap_or_default();
    order.print_list(outside, builds, listing.limit, COLUMNS)
}

fn submit(outside: &mut Outside<'_>, order: &Order<'_>, words: &Submit) -> Result<(), Error> {
    source::refuse_remote(&words.source)?;
    let mut build = match (&words.tag, &words.pack) {
        (None, Some(pack)) => pack::build(pack)?,
        (Some(tag), _) => {
            let dockerfile = words.dockerfile.as_deref().unwrap_or(Path::new(DOCKERFILE));
            docker_build(tag, &words.source, dockerfile)?
        }
        (None, None) => configuration(
            words.config.as_deref().unwrap_or(Path::new("cloudbuild.yaml")),
            &words.source,
        )?,
    };
    if let Some(timeout) = words.timeout {
        build["timeout"] = format!("{timeout}s").into();
    }
    for (name, value) in flag::joined(&words.substitutions) {
        build["substitutions"][name.as_str()] = value.into();
    }
    let server = Server::find(outside, order.global)?;
    let bucket = format!("{}_cloudbuild", server.project);
    let name = format!("source/{}-{:016x}.tgz", outside.now, outside.chance);
    build["source"] = json!({ "storageSource": source::upload(outside, &server, &words.source, &bucket, &name)? });
    let location = order.global.region.as_deref().unwrap_or("global");
    let path = place(&server, &escape(location));
    let operation = server.json(outside, &Method::POST, HOST, &path, Content::Json(&build))?;
    let begun = &operation["metadata"]["build"];
    let id = text(&begun["id"]);
    outside.say(&format!("Created build [{id}]."));
    if words.asynchronous {
        return order.print_list(outside, vec![begun.clone()], None, COLUMNS);
    }
    let ended = Log::of(begun)?.follow(outside, &server, &id)?;
    ended_well(&ended)?;
    order.print_list(outside, vec![ended], None, COLUMNS)
}

/// A build of one image by a Dockerfile of the source.
fn docker_build(image: &str, source: &Path, dockerfile: &Path) -> Result<Value, Error> {
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    let name = dockerfile.to_str().filter(|_| dockerfile.components().all(inside));
    let Some(name) = name else {
        return Err(Error::Usage(format!(
            "--dockerfile: {} is not a path below the source, such as docker/api.Dockerfile",
            dockerfile.display()
        )));
    };
    if !source.join(dockerfile).is_file() {
        return Err(Error::Failed(format!(
            "{} has no {name} to build an image by",
            source.display()
        )));
    }
    let mut words = vec!["build", "-t", image];
    if name != DOCKERFILE {
        words.extend(["-f", name]);
    }
    words.push(".");
    Ok(json!({
        "steps": [{ "name": "gcr.io/cloud-builders/docker", "args": words }],
        "images": [image],
    }))
}

/// A file beside the directory's own, else in it.
fn configuration(file: &Path, source: &Path) -> Result<Value, Error> {
    let path = if file.exists() {
        file.to_owned()
    } else {
        source.join(file)
    };
    let text = std::fs::read_to_string(&path).map_err(|cause| {
        if cause.kind() == std::io::ErrorKind::NotFound {
            return Error::Failed(format!(
                "there is no {}: give --tag IMAGE, or --config FILE",
                path.display()
            ));
        }
        Error::File {
            path: path.clone(),
            source: cause,
        }
    })?;
    let read: Value = serde_norway::from_str(&text)
        .map_err(|why| Error::Failed(format!("{} is not a build: {why}", path.display())))?;
    if !read.is_object() {
        return Err(Error::Failed(format!(
            "{} is not a build: it is no object",
            path.display()
        )));
    }
    Ok(read)
}

fn ended_well(build: &Value) -> Result<(), Error> {
    let status = text(&build["status"]);
    if status == "SUCCESS" {
        return Ok(());
    }
    let why = build["statusDetail"]
        .as_str()
        .map_or_else(String::new, |why| format!(": {why}"));
    Err(Error::Failed(format!(
        "build {} completed with status \"{status}\"{why}",
        text(&build["id"])
    )))
}

/// The log of a build, as far as it was read.
#[derive(Debug)]
struct Log {
    path: String,
    read: u64,
}

impl Log {
    fn of(build: &Value) -> Result<Self, Error> {
        let bucket = text(&build["logsBucket"]);
        let bucket = bucket.strip_prefix("gs://").ok_or_else(|| Error::Answer {
            call: "GET builds".to_owned(),
            what: "a build without a bucket of logs".to_owned(),
        })?;
        Ok(Self {
            path: format!("/{bucket}/log-{}.txt", text(&build["id"])),
            read: 0,
        })
    }

    /// What is new.
    fn read_on(&mut self, outside: &Outside<'_>, server: &Server) -> Result<Vec<u8>, Error> {
        let new = server.bytes_from(outside, STORAGE, &self.path, self.read)?;
        let new = new.unwrap_or_default();
        self.read += new.len() as u64;
        Ok(new)
    }

    /// Prints what is new.
    fn more(&mut self, outside: &mut Outside<'_>, server: &Server) -> Result<(), Error> {
        let new = self.read_on(outside, server)?;
        outside
            .out
            .write_all(&new)
            .and_then(|()| outside.out.flush())
            .map_err(Error::Output)
    }

    /// Prints what comes until the build has ended. Answers the build.
    fn follow(&mut self, outside: &mut Outside<'_>, server: &Server, id: &str) -> Result<Value, Error> {
        loop {
            // First: the log is whole when the build has ended.
            let build = find(outside, server, id)?;
            self.more(outside, server)?;
            if !["QUEUED", "WORKING"].contains(&text(&build["status"]).as_str()) {
                return Ok(build);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// What a source deploy has made.
#[derive(Debug)]
pub(crate) struct Made {
    /// By its digest.
    pub(crate) image: String,
    /// What the service keeps of the build.
    pub(crate) annotations: Vec<(&'static str, String)>,
}

/// Builds the image of a service from a directory.
pub(crate) fn of_service(
    outside: &mut Outside<'_>,
    server: &Server,
    service: &str,
    dir: &Path,
    dockerfile: Option<&Path>,
    make: &Make,
) -> Result<Made, Error> {
    source::refuse_remote(dir)?;
    let has = |file: &str| std::fs::symlink_metadata(dir.join(file)).is_ok();
    let has_dockerfile = dockerfile.is_some() || has(DOCKERFILE);
    if has_dockerfile && make.builder.is_none() && make.needs_buildpacks() {
        return Err(Error::Failed(
            "the source has a Dockerfile, and --base-image and --set-build-env-vars are for buildpacks: name a \
             --builder as well, or leave them out"
                .to_owned(),
        ));
    }
    let region = server.region().to_owned();
    let image = format!(
        "{region}-docker.pkg.dev/{}/cloud-run-source-deploy/{service}",
        server.project
    );
    // Before anything is sent.
    let named = dockerfile.map(|name| docker_build(&image, dir, name)).transpose()?;
    let named = named.or_else(|| Some(make.build(&image, make.builder.as_deref()?)));
    let bucket = format!("run-sources-{}-{region}", server.project);
    let name = format!("services/{service}/{}-{:016x}.tgz", outside.now, outside.chance);
    let storage = source::upload(outside, server, dir, &bucket, &name)?;
    let generation = text(&storage["generation"]);
    let tags = json!([format!("service_{service}")]);
    let operation = if let Some(mut asked) = named {
        // The call that a source deploy makes has no place for the name of a Dockerfile or a builder.
        asked["source"] = json!({ "storageSource": storage });
        asked["tags"] = tags;
        let path = place(server, &escape(&region));
        server.json(outside, &Method::POST, HOST, &path, Content::Json(&asked))?
    } else {
        let mut asked = json!({ "imageUri": image, "storageSource": storage, "tags": tags });
        if has_dockerfile {
            asked["dockerBuild"] = json!({});
        } else {
            asked["buildpackBuild"] = make.buildpack_build(has("project.toml"));
        }
        let path = format!(
            "/v2/projects/{}/locations/{}/builds:submit",
            escape(&server.project),
            escape(&region)
        );
        let mut submitted = server.json(outside, &Method::POST, &server.regional(), &path, Content::Json(&asked))?;
        submitted["buildOperation"].take()
    };
    let begun = &operation["metadata"]["build"];
    let id = text(&begun["id"]);
    outside.say(&format!("Building Container... (homerun builds log {id} --stream)"));
    let mut log = Log::of(begun)?;
    let mut steps = Steps::begin();
    let began = std::time::Instant::now();
    let ended = loop {
        // First: the log is whole when the build has ended.
        let looked = find(outside, server, &id).and_then(|build| Ok((build, log.read_on(outside, server)?)));
        let build = match looked {
            Ok((build, new)) => {
                steps.more(outside, &new);
                build
            }
            Err(error) => {
                steps.end(outside);
                return Err(error);
            }
        };
        if !["QUEUED", "WORKING"].contains(&text(&build["status"]).as_str()) {
            break build;
        }
        std::thread::sleep(pause(began.elapsed()).min(PAUSE));
    };
    steps.end(outside);
    ended_well(&ended)?;
    let digest = text(&ended["results"]["images"][0]["digest"]);
    if digest.is_empty() {
        return Err(Error::Answer {
            call: "GET builds".to_owned(),
            what: "a build without an image".to_owned(),
        });
    }
    let annotations = vec![
        ("run.googleapis.com/build-id", id),
        ("run.googleapis.com/build-name", text(&ended["name"])),
        ("run.googleapis.com/build-image-uri", image.clone()),
        (
            "run.googleapis.com/build-source-location",
            format!("gs://{bucket}/{name}#{generation}"),
        ),
        ("run.googleapis.com/build-enable-automatic-updates", "false".to_owned()),
    ];
    Ok(Made {
        image: format!("{image}@{digest}"),
        annotations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_is_not_well_says_why() {
        assert!(ended_well(&json!({"status": "SUCCESS"})).is_ok());
        let failed = json!({"id": "x", "status": "FAILURE", "statusDetail": "at STEP 1/2: RUN false"});
        let said = ended_well(&failed).expect_err("failed").text();
        assert_eq!(
            said,
            "build x completed with status \"FAILURE\": at STEP 1/2: RUN false"
        );
    }

    #[test]
    fn durations() {
        let build = json!({"startTime": "2026-11-28T12:16:36.5Z", "finishTime": "2026-11-28T12:17:39.1Z"});
        assert_eq!(duration(&build), "63S");
        assert_eq!(duration(&json!({"startTime": "2026-11-28T12:16:36.5Z"})), "");
    }
}
