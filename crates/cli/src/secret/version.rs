//! `secrets versions ...`.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ureq::http::Method;

use super::{HOST, data, path, payload, revealed};
use crate::artifact::{date, last, text};
use crate::call::{Content, Server, escape};
use crate::format::{Column, yaml_text};
use crate::words::Listing;
use crate::{Error, Order, Outside};

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Versions {
    /// Add a version: the newest value from now on
    Add {
        secret: String,
        /// File with the value, - for stdin
        #[arg(long, value_name = "PATH")]
        data_file: PathBuf,
    },
    /// Print a value
    Access {
        #[command(flatten)]
        one: One,
        /// Write it to this file, which its owner alone can read
        #[arg(long, value_name = "PATH")]
        out_file: Option<PathBuf>,
    },
    /// List versions, newest first
    List {
        secret: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show a version, without its value
    Describe(One),
    /// Give a value out again
    Enable(Changed),
    /// Give a value out no longer
    Disable(Changed),
    /// Destroy a value for good
    Destroy(Changed),
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// A number, latest, or an alias; or the whole name with its secret
    version: String,
    #[arg(long)]
    secret: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Changed {
    #[command(flatten)]
    one: One,
    /// Only while it is as it was read
    #[arg(long)]
    etag: Option<String>,
}

impl One {
    /// Secret and version.
    fn parts(&self) -> Result<(String, String), Error> {
        if let ["projects", _, "secrets", secret, "versions", version] = self.version.split('/').collect::<Vec<_>>()[..]
        {
            return Ok((secret.to_owned(), version.to_owned()));
        }
        match &self.secret {
            Some(secret) => Ok((secret.clone(), self.version.clone())),
            None => Err(Error::Usage(format!(
                "argument --secret: Must be specified, for version {}.",
                self.version
            ))),
        }
    }

    fn path(&self, server: &Server) -> Result<String, Error> {
        let (secret, version) = self.parts()?;
        Ok(format!("{}/versions/{}", path(server, &secret), escape(&version)))
    }
}

const COLUMNS: &[Column] = &[
    Column {
        heading: "NAME",
        cell: |version| last(&version["name"]),
    },
    Column {
        heading: "STATE",
        cell: |version| text(&version["state"]).to_lowercase(),
    },
    Column {
        heading: "CREATED",
        cell: |version| date(&version["createTime"]),
    },
    Column {
        heading: "DESTROYED",
        cell: |version| {
            let time = &version["destroyTime"];
            if time.is_string() { date(time) } else { "-".to_owned() }
        },
    },
];

pub(super) fn run(
    outside: &mut Outside<'_>,
    order: &Order<'_>,
    server: &Server,
    words: &Versions,
) -> Result<(), Error> {
    match words {
        Versions::Add { secret, data_file } => {
            let data = data(outside, data_file)?;
            let made = add(outside, server, secret, &data)?;
            match order.format {
                Some(_) => order.print_one(outside, &made, |_| String::new()),
                None => Ok(()),
            }
        }
        Versions::Access { one, out_file } => {
            let answer = server.get(outside, HOST, &format!("{}:access", one.path(server)?))?;
            let value = revealed(&answer)?;
            match (out_file, order.format) {
                (Some(file), _) => written(file, &value),
                (None, Some(_)) => order.print_one(outside, &answer, |_| String::new()),
                // As it is, without a line's end of its own.
                (None, None) => outside.out.write_all(&value).map_err(Error::Output),
            }
        }
        Versions::List { secret, listing } => {
            let versions = format!("{}/versions", path(server, secret));
            let items = server.all(outside, HOST, &versions, "versions")?;
            order.print_list(outside, items, listing.limit, COLUMNS)
        }
        Versions::Describe(one) => {
            let found = server.get(outside, HOST, &one.path(server)?)?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Versions::Enable(changed) => change(outside, order, server, changed, "enable", "Enabled"),
        Versions::Disable(changed) => change(outside, order, server, changed, "disable", "Disabled"),
        Versions::Destroy(changed) => {
            let (secret, version) = changed.one.parts()?;
            order.confirm(
                outside,
                &format!(
                    "You are about to destroy version [{version}] of the secret [{secret}]. This action cannot be \
                     reversed."
                ),
            )?;
            change(outside, order, server, changed, "destroy", "Destroyed")
        }
    }
}

/// Adds a version and says so.
pub(super) fn add(outside: &mut Outside<'_>, server: &Server, secret: &str, data: &[u8]) -> Result<Value, Error> {
    let called = format!("{}:addVersion", path(server, secret));
    let made = server.json(outside, &Method::POST, HOST, &called, Content::Json(&payload(data)))?;
    outside.say(&format!(
        "Created version [{}] of the secret [{secret}].",
        last(&made["name"])
    ));
    Ok(made)
}

fn change(
    outside: &mut Outside<'_>,
    order: &Order<'_>,
    server: &Server,
    changed: &Changed,
    verb: &str,
    done: &str,
) -> Result<(), Error> {
    let (secret, version) = changed.one.parts()?;
    let body = match &changed.etag {
        Some(etag) => json!({ "etag": etag }),
        None => json!({}),
    };
    let called = format!("{}:{verb}", changed.one.path(server)?);
    let after = server.json(outside, &Method::POST, HOST, &called, Content::Json(&body))?;
    outside.say(&format!("{done} version [{version}] of the secret [{secret}]."));
    match order.format {
        Some(_) => order.print_one(outside, &after, |_| String::new()),
        None => Ok(()),
    }
}

fn written(file: &PathBuf, value: &[u8]) -> Result<(), Error> {
    let open = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file);
    let written = open.and_then(|mut file| file.write_all(value));
    written.map_err(|source| Error::File {
        path: file.clone(),
        source,
    })
}
