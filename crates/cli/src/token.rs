//! `auth ...`: tokens, and the accounts whose keys this client holds.
//!
//! The owner needs no activation: its key is in the data directory of the Homerun that answers. Keys of other accounts
//! come by `activate-service-account`, are tried once, and kept.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::account::write_private;
use crate::call::{SCOPE, Server};
use crate::credential::{self, email_of, file_of, read_file};
use crate::format::Column;
use crate::property::Settings;
use crate::words::Listing;
use crate::{Ask, Error, Order, Outside};

/// The audience of ID tokens that gcloud asks for when none is given; services accept it.
pub(crate) const GCLOUD_AUDIENCE: &str = "32555940559.apps.googleusercontent.com";

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Auth {
    /// Print an access token for the API
    PrintAccessToken,
    /// Print an ID token for calling services
    PrintIdentityToken {
        /// Whom the token is for, instead of gcloud's own audience
        #[arg(long)]
        audiences: Option<String>,
        /// The e-mail too in a token of an impersonated account; others always have it
        #[arg(long)]
        include_email: bool,
    },
    /// Use a service account by its key file from now on
    ActivateServiceAccount(Activate),
    /// List the accounts that can be used
    List(Listing),
    /// Forget the keys of accounts
    Revoke {
        /// E-mails. The active account where none is given
        accounts: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Activate {
    /// The e-mail that the key file must be of
    account: Option<String>,
    #[arg(long)]
    key_file: PathBuf,
}

const ACCOUNTS: &[Column] = &[
    Column {
        heading: "ACTIVE",
        cell: |account| if account["status"] == "ACTIVE" { "*" } else { "" }.to_owned(),
    },
    Column {
        heading: "ACCOUNT",
        cell: |account| account["account"].as_str().unwrap_or_default().to_owned(),
    },
];

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, auth: &Auth) -> Result<(), Error> {
    let server = Server::find(outside, order.global)?;
    match auth {
        Auth::PrintAccessToken => {
            let token = server.access_token(outside)?;
            outside.print(&token)
        }
        Auth::PrintIdentityToken {
            audiences,
            include_email,
        } => {
            if *include_email && server.chosen.spoken_for().is_none() {
                return Err(Error::Failed(
                    "Invalid account type for `--include-email`. Requires an impersonate service account.".to_owned(),
                ));
            }
            let audience = audiences.as_deref().unwrap_or(GCLOUD_AUDIENCE);
            let token = server.identity_token(outside, audience, *include_email, outside.now)?;
            outside.print(&token)
        }
        Auth::ActivateServiceAccount(words) => activate(outside, &server, words),
        Auth::List(listing) => {
            let found = accounts(outside, &server);
            order.print_list(outside, found, listing.limit, ACCOUNTS)
        }
        Auth::Revoke { accounts } => revoke(outside, &server, accounts),
    }
}

fn activate(outside: &mut Outside<'_>, server: &Server, words: &Activate) -> Result<(), Error> {
    let key = read_file(&words.key_file)?;
    let shown = words.key_file.display();
    let no_key = || Error::Failed(format!("{shown} is no key file of a service account"));
    let account = email_of(&key).ok_or_else(no_key)?;
    if words.account.as_ref().is_some_and(|given| *given != account) {
        return Err(Error::Failed(
            "The given account name does not match the account name in the key file. This argument can be omitted when \
             using .json keys."
                .to_owned(),
        ));
    }
    let file = file_of(outside, &account).ok_or_else(no_key)?;
    server.exchange(
        outside,
        (&words.key_file, &key),
        Ask::Scope(SCOPE),
        "access_token",
        outside.now,
    )?;
    let directory = credential::directory(outside);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|source| Error::File {
            path: directory,
            source,
        })?;
    write_private(&file, key.as_bytes())?;
    Settings::open(outside)?.put("core", "account", Some(&account))?;
    outside.say(&format!("Activated service account credentials for: [{account}]"));
    Ok(())
}

/// The owner, where its key can be read, and those whose keys are kept.
fn accounts(outside: &Outside<'_>, server: &Server) -> Vec<Value> {
    let owner = server.owner();
    let mut emails: Vec<String> = std::fs::read_dir(credential::directory(outside))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            name.strip_suffix(".json").map(str::to_owned)
        })
        .chain(owner.clone())
        .collect();
    emails.sort();
    emails.dedup();
    let active = server.chosen.account.clone().or(owner);
    emails
        .into_iter()
        .map(|email| {
            let status = if Some(&email) == active.as_ref() { "ACTIVE" } else { "" };
            json!({ "account": email, "status": status })
        })
        .collect()
}

fn revoke(outside: &mut Outside<'_>, server: &Server, given: &[String]) -> Result<(), Error> {
    let mut settings = Settings::open(outside)?;
    let active = settings.get("core", "account").map(str::to_owned);
    let emails: Vec<String> = if given.is_empty() {
        active.clone().into_iter().collect()
    } else {
        given.to_vec()
    };
    if emails.is_empty() {
        return Err(Error::Failed(
            "No credentials to revoke: no account is active but the owner, whose key is the Homerun's".to_owned(),
        ));
    }
    for email in &emails {
        let file = file_of(outside, email).filter(|file| file.exists());
        let Some(file) = file else {
            let why = if server.owner().as_ref() == Some(email) {
                "its key is the Homerun's own"
            } else {
                "it has no credentials here"
            };
            return Err(Error::Failed(format!("Cannot revoke [{email}]: {why}")));
        };
        std::fs::remove_file(&file).map_err(|source| Error::File { path: file, source })?;
        if active.as_ref() == Some(email) {
            settings.put("core", "account", None)?;
        }
    }
    outside.say("Revoked credentials:");
    for email in &emails {
        outside.say(&format!(" - {email}"));
    }
    Ok(())
}
