//! `artifacts ...`: repositories of images and what they hold, in gcloud's words.

pub(crate) mod docker;
mod repository;

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::call::{Server, escape};
use crate::flag::{self, List, Pairs};
use crate::words::Listing;
use crate::{Error, Order, Outside};

pub(crate) const HOST: &str = "artifactregistry.googleapis.com";

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Artifacts {
    /// Repositories
    #[command(subcommand)]
    Repositories(Repositories),
    /// Images and their tags
    #[command(subcommand)]
    Docker(Docker),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Repositories {
    /// Create a repository
    Create(Create),
    /// Change a repository
    Update(Update),
    /// Show one repository
    Describe(One),
    /// List repositories
    List {
        /// Only of this location
        #[arg(long)]
        location: Option<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Delete a repository with all it holds
    Delete(One),
    /// Set what is deleted by itself
    SetCleanupPolicies(SetCleanup),
    /// Show what is deleted by itself
    ListCleanupPolicies(One),
    /// Forget some of what is deleted by itself
    DeleteCleanupPolicies(DeleteCleanup),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    pub(crate) repository: String,
    /// Such as us-central1, instead of the region
    #[arg(long)]
    pub(crate) location: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) one: One,
    /// Only docker is served
    #[arg(long)]
    pub(crate) repository_format: String,
    #[arg(long)]
    pub(crate) description: Option<String>,
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    pub(crate) labels: Vec<Pairs>,
    #[command(flatten)]
    pub(crate) tags: TagsStay,
}

#[derive(Debug, Args)]
pub(crate) struct TagsStay {
    /// Tags can be neither moved nor deleted
    #[arg(long, overrides_with = "no_immutable_tags")]
    immutable_tags: bool,
    /// Tags can be moved and deleted
    #[arg(long)]
    no_immutable_tags: bool,
}

impl TagsStay {
    /// None: it was not said.
    pub(crate) fn said(&self) -> Option<bool> {
        (self.immutable_tags || self.no_immutable_tags).then_some(self.immutable_tags)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    pub(crate) one: One,
    #[arg(long)]
    pub(crate) description: Option<String>,
    #[command(flatten)]
    pub(crate) tags: TagsStay,
}

#[derive(Debug, Args)]
pub(crate) struct SetCleanup {
    #[command(flatten)]
    pub(crate) one: One,
    /// JSON file with a list of policies
    #[arg(long)]
    pub(crate) policy: Option<std::path::PathBuf>,
    /// Delete nothing by policies
    #[arg(long, overrides_with = "no_dry_run")]
    pub(crate) dry_run: bool,
    /// Delete by policies
    #[arg(long)]
    pub(crate) no_dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteCleanup {
    #[command(flatten)]
    pub(crate) one: One,
    /// Names of policies
    #[arg(long, value_name = "NAME,...", required = true)]
    pub(crate) policynames: Vec<List>,
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Docker {
    /// Images
    #[command(subcommand)]
    Images(Images),
    /// Tags
    #[command(subcommand)]
    Tags(Tags),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Images {
    /// List images of a repository, or of one path in it
    List {
        /// Such as us-central1-docker.pkg.dev/my-project/docker-repo
        path: String,
        /// Show tags too
        #[arg(long)]
        include_tags: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show one image
    Describe { image: String },
    /// Delete an image, or one of its versions
    Delete {
        image: String,
        /// With all tags of the version
        #[arg(long)]
        delete_tags: bool,
    },
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Tags {
    /// List tags of a repository, or of one image
    List {
        path: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Give a tag to an image, or move it there
    Add { image: String, tag: String },
    /// Delete a tag
    Delete { tag: String },
}

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Artifacts) -> Result<(), Error> {
    match words {
        Artifacts::Repositories(words) => repository::run(outside, order, words),
        Artifacts::Docker(Docker::Images(words)) => docker::images(outside, order, words),
        Artifacts::Docker(Docker::Tags(words)) => docker::tags(outside, order, words),
    }
}

/// Path of the repositories of a location.
fn repositories(server: &Server, location: &str) -> String {
    format!(
        "/v1/projects/{}/locations/{}/repositories",
        escape(&server.project),
        escape(location)
    )
}

/// All items of a list under `field`, over all its pages.
fn all(outside: &Outside<'_>, server: &Server, path: &str, field: &str) -> Result<Vec<Value>, Error> {
    server.all(outside, HOST, path, field)
}

/// All locations with repositories.
fn locations(outside: &Outside<'_>, server: &Server) -> Result<Vec<String>, Error> {
    let path = format!("/v1/projects/{}/locations", escape(&server.project));
    let locations = all(outside, server, &path, "locations")?;
    Ok(locations.iter().map(|location| text(&location["locationId"])).collect())
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The last part of a name.
pub(crate) fn last(value: &Value) -> String {
    text(value).rsplit('/').next().unwrap_or_default().to_owned()
}

/// `2026-11-24T22:14:17`, as gcloud's tables have it.
pub(crate) fn date(value: &Value) -> String {
    let time = text(value);
    match time.parse::<jiff::Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        Err(_) => time,
    }
}
