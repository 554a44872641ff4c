//! `secrets ...`: secrets and their versions, in gcloud's words.

mod update;
mod version;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use ureq::http::Method;

use crate::artifact::{date, last, text};
use crate::call::{Content, Server, escape};
use crate::flag::{self, List, Pairs};
use crate::format::{Column, yaml_text};
use crate::iam::{self, Grant, On};
use crate::words::Listing;
use crate::{Error, Order, Outside};

pub(crate) const HOST: &str = "secretmanager.googleapis.com";
/// Longest value (Secret Manager's limit).
const LONGEST: u64 = 65_536;

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Secrets {
    /// Create a secret, with a first version when data is given
    Create(Create),
    /// List secrets
    List(Listing),
    /// Show one secret, without its values
    Describe { secret: String },
    /// Delete a secret with all its versions
    Delete(Delete),
    /// Change labels, annotations, aliases or expiry of a secret
    Update(Box<update::Update>),
    /// Versions of a secret, which hold its values
    #[command(subcommand)]
    Versions(version::Versions),
    /// Let a member do on the secret what a role says
    AddIamPolicyBinding(Granting),
    /// Take that back
    RemoveIamPolicyBinding(Granting),
    /// Show who may do what with the secret
    GetIamPolicy { secret: String },
    /// Replace that by what a file says
    SetIamPolicy { secret: String, policy_file: PathBuf },
    /// Put all values under a new key; what is kept stays the same
    RotateKey,
}

#[derive(Debug, Args)]
pub(crate) struct Granting {
    secret: String,
    #[command(flatten)]
    grant: Grant,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    secret: String,
    /// File with the value of the first version, - for stdin
    #[arg(long, value_name = "PATH")]
    data_file: Option<PathBuf>,
    /// automatic, or user-managed with --locations; there is one place here
    #[arg(long, value_parser = ["automatic", "user-managed"])]
    replication_policy: Option<String>,
    /// Noted beside a user-managed replication
    #[arg(long, value_name = "LOCATION,...")]
    locations: Vec<List>,
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    labels: Vec<Pairs>,
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    set_annotations: Vec<Pairs>,
    #[command(flatten)]
    expiry: Expiry,
}

#[derive(Debug, Args)]
pub(crate) struct Expiry {
    /// When the secret is deleted by itself, such as 2030-01-01T08:15:30Z
    #[arg(long, value_name = "TIME", conflicts_with = "ttl")]
    expire_time: Option<String>,
    /// After which time it is, such as 3600s
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    secret: String,
    /// Only while it is as it was read
    #[arg(long)]
    etag: Option<String>,
}

const COLUMNS: &[Column] = &[
    Column {
        heading: "NAME",
        cell: |secret| last(&secret["name"]),
    },
    Column {
        heading: "CREATED",
        cell: |secret| date(&secret["createTime"]),
    },
    Column {
        heading: "REPLICATION_POLICY",
        cell: |secret| {
            let managed = !secret["replication"]["userManaged"].is_null();
            if managed { "user_managed" } else { "automatic" }.to_owned()
        },
    },
    Column {
        heading: "LOCATIONS",
        cell: |secret| {
            let replicas = secret["replication"]["userManaged"]["replicas"].as_array();
            let locations = replicas.into_iter().flatten().map(|replica| text(&replica["location"]));
            match locations.collect::<Vec<_>>().join(",") {
                none if none.is_empty() => "-".to_owned(),
                some => some,
            }
        },
    },
];

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Secrets) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    match words {
        Secrets::Create(create) => created(outside, order, &server, create),
        Secrets::List(listing) => {
            let items = server.all(outside, HOST, &secrets(&server), "secrets")?;
            order.print_list(outside, items, listing.limit, COLUMNS)
        }
        Secrets::Describe { secret } => {
            let found = server.get(outside, HOST, &path(&server, secret))?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Secrets::Delete(delete) => deleted(outside, order, &server, delete),
        Secrets::Update(update) => update::run(outside, order, &server, update),
        Secrets::Versions(words) => version::run(outside, order, &server, words),
        Secrets::AddIamPolicyBinding(Granting { secret, grant }) => iam::add(outside, order, On::Secret(secret), grant),
        Secrets::RemoveIamPolicyBinding(Granting { secret, grant }) => {
            iam::remove(outside, order, On::Secret(secret), grant)
        }
        Secrets::GetIamPolicy { secret } => iam::get(outside, order, On::Secret(secret)),
        Secrets::SetIamPolicy { secret, policy_file } => iam::set(outside, order, On::Secret(secret), policy_file),
        Secrets::RotateKey => {
            let (host, path) = (server.api().to_owned(), "/homerun/v1/secrets:rotateKey");
            let answer = server.json(outside, &Method::POST, &host, path, Content::Json(&json!({})))?;
            outside.say(&format!("Put {} versions under a new key.", text(&answer["versions"])));
            Ok(())
        }
    }
}

fn secrets(server: &Server) -> String {
    format!("/v1/projects/{}/secrets", escape(&server.project))
}

pub(crate) fn path(server: &Server, secret: &str) -> String {
    format!("{}/{}", secrets(server), escape(secret))
}

fn map(pairs: &[Pairs]) -> Value {
    let pairs = flag::joined(pairs).into_iter();
    Value::Object(pairs.map(|(key, value)| (key, value.into())).collect())
}

fn replication(create: &Create) -> Result<Value, Error> {
    let locations = flag::listed(&create.locations);
    match create.replication_policy.as_deref() {
        Some("user-managed") if locations.is_empty() => Err(Error::Failed(
            "If --replication-policy is user-managed then --locations must also be provided.".to_owned(),
        )),
        Some("user-managed") => {
            let replicas: Vec<Value> = locations
                .iter()
                .map(|location| json!({ "location": location }))
                .collect();
            Ok(json!({ "userManaged": { "replicas": replicas } }))
        }
        _ if !locations.is_empty() => Err(Error::Failed(
            "Locations are only allowed when creating a secret with a \"user-managed\" replication policy.".to_owned(),
        )),
        _ => Ok(json!({ "automatic": {} })),
    }
}

/// Asks before a secret gets an end, and says in the document when that is.
fn expire(
    outside: &mut Outside<'_>,
    order: &Order<'_>,
    expiry: &Expiry,
    body: &mut Map<String, Value>,
) -> Result<(), Error> {
    let told = "This secret and all of its versions will be automatically deleted";
    if let Some(time) = &expiry.expire_time {
        order.confirm(outside, &format!("{told} at the requested expire-time of [{time}]."))?;
        body.insert("expireTime".to_owned(), json!(time));
    }
    if let Some(ttl) = &expiry.ttl {
        order.confirm(
            outside,
            &format!("{told} after the requested ttl of [{ttl}] has elapsed."),
        )?;
        body.insert("ttl".to_owned(), json!(ttl));
    }
    Ok(())
}

fn created(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, create: &Create) -> Result<(), Error> {
    let data = create
        .data_file
        .as_deref()
        .map(|file| data(outside, file))
        .transpose()?;
    let mut body = Map::new();
    body.insert("replication".to_owned(), replication(create)?);
    body.insert("labels".to_owned(), map(&create.labels));
    body.insert("annotations".to_owned(), map(&create.set_annotations));
    expire(outside, order, &create.expiry, &mut body)?;
    let called = format!("{}?secretId={}", secrets(server), escape(&create.secret));
    let made = server.json(
        outside,
        &Method::POST,
        HOST,
        &called,
        Content::Json(&Value::Object(body)),
    )?;
    match data {
        Some(data) => {
            version::add(outside, server, &create.secret, &data)?;
        }
        None => outside.say(&format!("Created secret [{}].", create.secret)),
    }
    match order.format {
        Some(_) => order.print_one(outside, &made, |_| String::new()),
        None => Ok(()),
    }
}

/// The bytes of a file, or of stdin.
fn data(outside: &mut Outside<'_>, file: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let failed = |source| Error::File {
        path: file.to_owned(),
        source,
    };
    if file.as_os_str().is_empty() {
        return Err(Error::Failed(
            "The value provided for --data-file is the empty string.".to_owned(),
        ));
    }
    let read = if file == Path::new("-") {
        outside.input.take(LONGEST + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(LONGEST + 1).read_to_end(&mut bytes))
    };
    read.map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::Failed(format!(
            "The file [{}] is larger than the maximum size of {LONGEST} bytes.",
            file.display()
        )));
    }
    Ok(bytes)
}

fn deleted(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, delete: &Delete) -> Result<(), Error> {
    let of = path(server, &delete.secret);
    let versions = server.all(outside, HOST, &format!("{of}/versions"), "versions")?;
    let left = versions
        .iter()
        .filter(|version| version["state"] != "DESTROYED")
        .count();
    order.confirm(
        outside,
        &format!(
            "You are about to destroy the secret [{}] and its [{left}] version(s). This action cannot be reversed.",
            delete.secret
        ),
    )?;
    let etag = delete
        .etag
        .as_ref()
        .map_or_else(String::new, |etag| format!("?etag={}", escape(etag)));
    server.json(outside, &Method::DELETE, HOST, &format!("{of}{etag}"), Content::None)?;
    outside.say(&format!("Deleted secret [{}].", delete.secret));
    Ok(())
}

/// The body that adds a version.
fn payload(data: &[u8]) -> Value {
    let sum = crc32c::crc32c(data).to_string();
    json!({ "payload": { "data": STANDARD.encode(data), "dataCrc32c": sum } })
}

/// The value of an answer, as it was sent off.
fn revealed(answer: &Value) -> Result<Vec<u8>, Error> {
    let data = STANDARD.decode(text(&answer["payload"]["data"]));
    let sum = text(&answer["payload"]["dataCrc32c"]);
    match data {
        Ok(data) if sum.is_empty() || sum == crc32c::crc32c(&data).to_string() => Ok(data),
        Ok(_) | Err(_) => Err(Error::Failed(
            "An incorrect data_crc32c was calculated for the provided payload. This might be a transient issue and \
             should be resolved with a retry."
                .to_owned(),
        )),
    }
}
