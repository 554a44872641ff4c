//! `iam ...`: service accounts with their keys, roles, and local groups.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use ureq::http::Method;

use crate::call::{Content, Server, escape};
use crate::flag::{self, List};
use crate::format::{Column, yaml_text};
use crate::iam::{self, Grant, On};
use crate::words::Listing;
use crate::{Error, Order, Outside};

pub(crate) const HOST: &str = "iam.googleapis.com";

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Iam {
    /// Service accounts and their keys
    #[command(subcommand)]
    ServiceAccounts(Accounts),
    /// Roles and what they hold
    #[command(subcommand)]
    Roles(Roles),
    /// Local groups, which policies name as group:EMAIL
    #[command(subcommand)]
    Groups(Groups),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Accounts {
    /// Create a service account
    Create(Create),
    /// List service accounts
    List(Listing),
    /// Show one service account
    Describe(One),
    /// Change what is said of a service account
    Update(Update),
    /// Delete a service account with its keys
    Delete(One),
    /// Refuse its keys and tokens
    Disable(One),
    /// Take its keys and tokens again
    Enable(One),
    /// Keys of a service account
    #[command(subcommand)]
    Keys(Keys),
    /// Give a role on the account to a member
    AddIamPolicyBinding(Granting),
    /// Take a role on the account from a member
    RemoveIamPolicyBinding(Granting),
    /// Show who may do what with the account
    GetIamPolicy(One),
    /// Replace the whole policy by a file's
    SetIamPolicy {
        service_account: String,
        /// YAML or JSON file with a policy, - for stdin
        policy_file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// E-mail or unique id
    service_account: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The part of its e-mail before the @
    name: String,
    #[arg(long)]
    display_name: Option<String>,
    #[arg(long)]
    description: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    service_account: String,
    #[arg(long)]
    display_name: Option<String>,
    #[arg(long)]
    description: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Granting {
    service_account: String,
    #[command(flatten)]
    grant: Grant,
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Keys {
    /// Create a key and write its file
    Create {
        output_file: PathBuf,
        #[command(flatten)]
        of: OfAccount,
    },
    /// List keys
    List {
        #[command(flatten)]
        of: OfAccount,
        /// user, system or any
        #[arg(long, value_parser = ["user", "system", "any"], default_value = "any")]
        managed_by: String,
        #[command(flatten)]
        listing: Listing,
    },
    /// Delete a key
    Delete(OneKey),
    /// Refuse a key
    Disable(OneKey),
    /// Take a key again
    Enable(OneKey),
}

#[derive(Debug, Args)]
pub(crate) struct OfAccount {
    /// E-mail of the service account
    #[arg(long)]
    iam_account: String,
}

#[derive(Debug, Args)]
pub(crate) struct OneKey {
    key: String,
    #[command(flatten)]
    of: OfAccount,
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Roles {
    /// List roles
    List(Listing),
    /// Show one role with its permissions
    Describe { role: String },
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Groups {
    /// List local groups
    List(Listing),
    /// Make a group, or replace its members
    Set {
        /// Such as developers@example.com
        group: String,
        /// user:EMAIL, serviceAccount:EMAIL or group:EMAIL
        #[arg(long, value_name = "MEMBER,...", required = true)]
        members: Vec<List>,
    },
    /// Delete a group
    Delete { group: String },
}

const ACCOUNTS: &[Column] = &[
    Column {
        heading: "DISPLAY NAME",
        cell: |account| text(&account["displayName"]),
    },
    Column {
        heading: "EMAIL",
        cell: |account| text(&account["email"]),
    },
    Column {
        heading: "DISABLED",
        cell: |account| truth(&account["disabled"]),
    },
];

const KEYS: &[Column] = &[
    Column {
        heading: "KEY_ID",
        cell: |key| last(&key["name"]),
    },
    Column {
        heading: "CREATED_AT",
        cell: |key| whole(&key["validAfterTime"]),
    },
    Column {
        heading: "EXPIRES_AT",
        cell: |key| whole(&key["validBeforeTime"]),
    },
    Column {
        heading: "DISABLED",
        cell: |key| {
            if key["disabled"] == true {
                "True".to_owned()
            } else {
                String::new()
            }
        },
    },
];

const ROLES: &[Column] = &[
    Column {
        heading: "NAME",
        cell: |role| text(&role["name"]),
    },
    Column {
        heading: "TITLE",
        cell: |role| text(&role["title"]),
    },
];

const GROUPS: &[Column] = &[
    Column {
        heading: "GROUP",
        cell: |group| text(&group["email"]),
    },
    Column {
        heading: "MEMBERS",
        cell: |group| {
            let members = group["members"].as_array().into_iter().flatten();
            members.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        },
    },
];

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn last(value: &Value) -> String {
    text(value).rsplit('/').next().unwrap_or_default().to_owned()
}

fn truth(value: &Value) -> String {
    let truth = if value == true { "True" } else { "False" };
    truth.to_owned()
}

/// A time without its fraction.
fn whole(value: &Value) -> String {
    let time = text(value);
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time,
    }
}

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Iam) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    match words {
        Iam::ServiceAccounts(words) => accounts(outside, order, &server, words),
        Iam::Roles(Roles::List(listing)) => {
            let roles = all(outside, &server, "/v1/roles?pageSize=1000", "roles")?;
            order.print_list(outside, roles, listing.limit, ROLES)
        }
        Iam::Roles(Roles::Describe { role }) => {
            let name = role.strip_prefix("roles/").unwrap_or(role);
            let found = server.get(outside, HOST, &format!("/v1/roles/{}", escape(name)))?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Iam::Groups(words) => groups(outside, order, &server, words),
    }
}

fn path(server: &Server, account: Option<&str>) -> String {
    let all = format!("/v1/projects/{}/serviceAccounts", escape(&server.project));
    match account {
        Some(account) => format!("{all}/{}", escape(account)),
        None => all,
    }
}

/// All items of a list under `field`, over all its pages. The path has a query already.
fn all(outside: &Outside<'_>, server: &Server, path: &str, field: &str) -> Result<Vec<Value>, Error> {
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let mut answer = server.get(outside, HOST, &format!("{path}{token}"))?;
        if let Some(more) = answer[field].as_array_mut() {
            items.append(more);
        }
        match answer["nextPageToken"].as_str().filter(|next| !next.is_empty()) {
            Some(next) => token = format!("&pageToken={}", escape(next)),
            None => return Ok(items),
        }
    }
}

fn accounts(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, words: &Accounts) -> Result<(), Error> {
    match words {
        Accounts::Create(create) => {
            let mut account = json!({});
            for (field, given) in [
                ("displayName", &create.display_name),
                ("description", &create.description),
            ] {
                if let Some(given) = given {
                    account[field] = given.as_str().into();
                }
            }
            let body = json!({ "accountId": create.name, "serviceAccount": account });
            let made = post(outside, server, &path(server, None), &body)?;
            outside.say(&format!("Created service account [{}].", create.name));
            asked_for(outside, order, &made)
        }
        Accounts::List(listing) => {
            let found = all(
                outside,
                server,
                &format!("{}?pageSize=100", path(server, None)),
                "accounts",
            )?;
            order.print_list(outside, found, listing.limit, ACCOUNTS)
        }
        Accounts::Describe(One { service_account }) => {
            let found = server.get(outside, HOST, &path(server, Some(service_account)))?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Accounts::Update(update) => {
            let (mut account, mut mask) = (json!({}), Vec::new());
            for (field, given) in [
                ("displayName", &update.display_name),
                ("description", &update.description),
            ] {
                if let Some(given) = given {
                    account[field] = given.as_str().into();
                    mask.push(field);
                }
            }
            if mask.is_empty() {
                let what = "Specify at least one of --display-name and --description";
                return Err(Error::Usage(what.to_owned()));
            }
            let body = json!({ "serviceAccount": account, "updateMask": mask.join(",") });
            let of = path(server, Some(&update.service_account));
            let changed = server.json(outside, &Method::PATCH, HOST, &of, Content::Json(&body))?;
            outside.say(&format!("Updated serviceAccount [{}].", update.service_account));
            order.print_one(outside, &changed, |_| yaml_text(&changed))
        }
        Accounts::Delete(One { service_account }) => {
            let question = format!("You are about to delete service account [{service_account}]");
            order.confirm(outside, &question)?;
            server.json(
                outside,
                &Method::DELETE,
                HOST,
                &path(server, Some(service_account)),
                Content::None,
            )?;
            outside.say(&format!("deleted service account [{service_account}]"));
            Ok(())
        }
        Accounts::Disable(One { service_account }) => {
            let of = format!("{}:disable", path(server, Some(service_account)));
            post(outside, server, &of, &json!({}))?;
            outside.say(&format!("Disabled service account [{service_account}]."));
            Ok(())
        }
        Accounts::Enable(One { service_account }) => {
            let of = format!("{}:enable", path(server, Some(service_account)));
            post(outside, server, &of, &json!({}))?;
            outside.say(&format!("Enabled service account [{service_account}]."));
            Ok(())
        }
        Accounts::Keys(words) => keys(outside, order, server, words),
        Accounts::AddIamPolicyBinding(Granting { service_account, grant }) => {
            iam::add(outside, order, On::Account(service_account), grant)
        }
        Accounts::RemoveIamPolicyBinding(Granting { service_account, grant }) => {
            iam::remove(outside, order, On::Account(service_account), grant)
        }
        Accounts::GetIamPolicy(One { service_account }) => iam::get(outside, order, On::Account(service_account)),
        Accounts::SetIamPolicy {
            service_account,
            policy_file,
        } => iam::set(outside, order, On::Account(service_account), policy_file),
    }
}

fn post(outside: &Outside<'_>, server: &Server, path: &str, body: &Value) -> Result<Value, Error> {
    server.json(outside, &Method::POST, HOST, path, Content::Json(body))
}

/// What gcloud prints only when a format is asked for.
fn asked_for(outside: &mut Outside<'_>, order: &Order<'_>, item: &Value) -> Result<(), Error> {
    if order.format.is_some() {
        order.print_one(outside, item, |_| String::new())?;
    }
    Ok(())
}

fn keys(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, words: &Keys) -> Result<(), Error> {
    let of = |account: &OfAccount| format!("{}/keys", path(server, Some(&account.iam_account)));
    let one = |key: &OneKey| format!("{}/{}", of(&key.of), escape(&key.key));
    match words {
        Keys::Create {
            output_file,
            of: account,
        } => {
            let body = json!({ "privateKeyType": "TYPE_GOOGLE_CREDENTIALS_FILE" });
            let made = post(outside, server, &of(account), &body)?;
            let file = made["privateKeyData"]
                .as_str()
                .and_then(|data| STANDARD.decode(data).ok());
            let file = file.ok_or_else(|| Error::Answer {
                call: "keys.create".to_owned(),
                what: "no key file".to_owned(),
            })?;
            write_private(output_file, &file)?;
            outside.say(&format!(
                "created key [{}] of type [json] as [{}] for [{}]",
                last(&made["name"]),
                output_file.display(),
                account.iam_account
            ));
            Ok(())
        }
        Keys::List {
            of: account,
            managed_by,
            listing,
        } => {
            let kinds = match managed_by.as_str() {
                "user" => "?keyTypes=USER_MANAGED",
                "system" => "?keyTypes=SYSTEM_MANAGED",
                _ => "",
            };
            let mut found = server.get(outside, HOST, &format!("{}{kinds}", of(account)))?;
            let keys = found["keys"].as_array_mut().map(std::mem::take).unwrap_or_default();
            order.print_list(outside, keys, listing.limit, KEYS)
        }
        Keys::Delete(key) => {
            let (id, email) = (&key.key, &key.of.iam_account);
            let question = format!("You are about to delete key [{id}] for service account [{email}]");
            order.confirm(outside, &question)?;
            server.json(outside, &Method::DELETE, HOST, &one(key), Content::None)?;
            outside.say(&format!("deleted key [{id}] for service account [{email}]"));
            Ok(())
        }
        Keys::Disable(key) => {
            post(outside, server, &format!("{}:disable", one(key)), &json!({}))?;
            let (id, email) = (&key.key, &key.of.iam_account);
            outside.say(&format!("Disabled key [{id}] for service account [{email}]."));
            Ok(())
        }
        Keys::Enable(key) => {
            post(outside, server, &format!("{}:enable", one(key)), &json!({}))?;
            let (id, email) = (&key.key, &key.of.iam_account);
            outside.say(&format!("Enabled key [{id}] for service account [{email}]."));
            Ok(())
        }
    }
}

/// A file of a private key is its owner's alone, from its first byte on.
/// Writes a file that only its owner may read.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    use std::io::Write as _;
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(content))
        .map_err(failed)
}

fn groups(outside: &mut Outside<'_>, order: &Order<'_>, server: &Server, words: &Groups) -> Result<(), Error> {
    const PATH: &str = "/homerun/v1/groups";
    match words {
        Groups::List(listing) => {
            let mut found = server.own(outside, PATH)?;
            let groups = found["groups"].as_array_mut().map(std::mem::take).unwrap_or_default();
            order.print_list(outside, groups, listing.limit, GROUPS)
        }
        Groups::Set { group, members } => {
            let body = json!({ "members": flag::listed(members) });
            let of = format!("{PATH}/{}", escape(group));
            let api = server.api().to_owned();
            let made = server.json(outside, &Method::PUT, &api, &of, Content::Json(&body))?;
            outside.say(&format!("Updated group [{group}]."));
            order.print_one(outside, &made, |_| yaml_text(&made))
        }
        Groups::Delete { group } => {
            order.confirm(outside, &format!("You are about to delete group [{group}]"))?;
            let of = format!("{PATH}/{}", escape(group));
            let api = server.api().to_owned();
            server.json(outside, &Method::DELETE, &api, &of, Content::None)?;
            outside.say(&format!("Deleted group [{group}]."));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn key_files_are_private() {
        let dir = std::env::temp_dir().join(format!("homerun-key-{}", std::process::id()));
        std::fs::write(&dir, "before").expect("writes");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o644)).expect("chmod");
        write_private(&dir, b"key").expect("writes over");
        let mode = std::fs::metadata(&dir).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode, std::fs::read(&dir).expect("reads")), (0o600, b"key".to_vec()));
        std::fs::remove_file(&dir).expect("removes");
    }

    #[test]
    fn times_are_shown_whole() {
        assert_eq!(whole(&json!("2027-01-15T08:00:00.000000Z")), "2027-01-15T08:00:00Z");
        assert_eq!(whole(&json!("9999-12-31T23:59:59Z")), "9999-12-31T23:59:59Z");
    }
}
