//! `builds ...`: images from source, in gcloud's words; and the build that `run deploy --source` begins with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::flag::{self, Pairs};
use crate::format::{Column, yaml_text};
use crate::words::Listing;
use crate::{Error, Order, Outside, source};

const HOST: &str = "cloudbuild.googleapis.com";
const STORAGE: &str = "storage.googleapis.com";
/// From one look at a build to the next.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Builds {
    /// Build an image of a directory with a Dockerfile, and show the log meanwhile
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
    let mut build = match &words.tag {
        Some(tag) => {
            if std::fs::symlink_metadata(words.source.join("Dockerfile")).is_err() {
                return Err(Error::Failed(format!(
                    "{} has no Dockerfile, which --tag needs",
                    words.source.display()
                )));
            }
            json!({
                "steps": [{ "name": "gcr.io/cloud-builders/docker", "args": ["build", "-t", tag, "."] }],
                "images": [tag],
            })
        }
        None => configuration(
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

    /// Prints what is new.
    fn more(&mut self, outside: &mut Outside<'_>, server: &Server) -> Result<(), Error> {
        let Some(new) = server.bytes_from(outside, STORAGE, &self.path, self.read)? else {
            return Ok(());
        };
        self.read += new.len() as u64;
        outside
            .out
            .write_all(&new)
            .and_then(|()| outside.out.flush())
            .map_err(Error::Output)
    }

    /// Says what was found out about a source without a Dockerfile. Answers whether the log has it already.
    fn tell_detected(&self, outside: &mut Outside<'_>, server: &Server) -> Result<bool, Error> {
        let log = server.bytes_from(outside, STORAGE, &self.path, 0)?.unwrap_or_default();
        match detected(&String::from_utf8_lossy(&log)) {
            Some(found) => {
                outside.say(found);
                Ok(true)
            }
            None => Ok(false),
        }
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

/// What was found out about a source without a Dockerfile, as far as the log says it whole.
fn detected(log: &str) -> Option<&str> {
    let (_, rest) = log.split_once("\nDETECT\n")?;
    rest.split_once("\nBUILD\n").map(|(found, _)| found)
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
pub(crate) fn of_service(outside: &mut Outside<'_>, server: &Server, service: &str, dir: &Path) -> Result<Made, Error> {
    source::refuse_remote(dir)?;
    let has_dockerfile = std::fs::symlink_metadata(dir.join("Dockerfile")).is_ok();
    let region = server.region().to_owned();
    let bucket = format!("run-sources-{}-{region}", server.project);
    let name = format!("services/{service}/{}-{:016x}.tgz", outside.now, outside.chance);
    let storage = source::upload(outside, server, dir, &bucket, &name)?;
    let generation = text(&storage["generation"]);
    let image = format!(
        "{region}-docker.pkg.dev/{}/cloud-run-source-deploy/{service}",
        server.project
    );
    let mut asked = json!({
        "imageUri": image,
        "storageSource": storage,
        "tags": [format!("service_{service}")],
    });
    let kind = if has_dockerfile {
        "dockerBuild"
    } else {
        "buildpackBuild"
    };
    asked[kind] = json!({});
    let path = format!(
        "/v2/projects/{}/locations/{}/builds:submit",
        escape(&server.project),
        escape(&region)
    );
    let submitted = server.json(outside, &Method::POST, &server.regional(), &path, Content::Json(&asked))?;
    let begun = &submitted["buildOperation"]["metadata"]["build"];
    let id = text(&begun["id"]);
    outside.say(&format!("Building Container... (homerun builds log {id} --stream)"));
    let mut undetected = if has_dockerfile { None } else { Some(Log::of(begun)?) };
    let ended = loop {
        let build = find(outside, server, &id)?;
        if let Some(log) = &undetected
            && log.tell_detected(outside, server)?
        {
            undetected = None;
        }
        if !["QUEUED", "WORKING"].contains(&text(&build["status"]).as_str()) {
            break build;
        }
        std::thread::sleep(PAUSE);
    };
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
    fn what_was_detected_is_told_when_it_is_whole() {
        let half = "FETCHSOURCE\n1 files out of 2 bytes\nDETECT\ndetected Go: the source has go.mod\n    FROM x";
        assert_eq!(detected(half), None);
        let whole = format!("{half}\nBUILD\nSTEP 1/2: FROM x\n");
        assert_eq!(detected(&whole), Some("detected Go: the source has go.mod\n    FROM x"));
        assert_eq!(detected("FETCHSOURCE\nBUILD\n"), None);
    }

    #[test]
    fn durations() {
        let build = json!({"startTime": "2026-11-28T12:16:36.5Z", "finishTime": "2026-11-28T12:17:39.1Z"});
        assert_eq!(duration(&build), "63S");
        assert_eq!(duration(&json!({"startTime": "2026-11-28T12:16:36.5Z"})), "");
    }
}
