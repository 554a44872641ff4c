//! `env` and `gcloud`: pointing Google's gcloud, and any other client, at this Homerun.
//!
//! gcloud is pointed by a named configuration `homerun` that is written as its file; nothing else of the user's gcloud
//! is touched, and leaving out the variables leaves Homerun. The environment beats a configuration, so variables that
//! would point elsewhere are unset.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::call::{About, Server};
use crate::words::Global;
use crate::{Error, Exec, Outside, property};

const CONFIGURATION: &str = "homerun";
const CA: &str = "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE";

#[derive(Debug, Args)]
pub(crate) struct Env {
    /// Also for curl, Python and Node: proxy and certificate authority
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Gcloud {
    /// Words for gcloud, all that follow
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<String>,
}

/// Starts of variables that beat the configuration in what it is there for.
const OVERRIDES: &[&str] = &[
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_",
    "CLOUDSDK_AUTH_",
    "CLOUDSDK_PROXY_",
    "CLOUDSDK_CORE_ACCOUNT",
    "CLOUDSDK_CORE_PROJECT",
    "CLOUDSDK_CORE_UNIVERSE_DOMAIN",
    "CLOUDSDK_CORE_REQUEST_REASON",
    "CLOUDSDK_RUN_",
];

/// The name of a data directory where a file belongs to it.
pub(crate) fn short_id(data_dir: &Path) -> String {
    model::data_dir_id(data_dir.as_os_str().as_encoded_bytes())
}

/// One folder of gcloud's per data directory and owner key: gcloud keeps tokens there, and those of an older key in the
/// same directory are of no use.
fn place(about: &About) -> String {
    let key = std::fs::read_to_string(about.owner_key()).unwrap_or_default();
    let key: serde_json::Value = serde_json::from_str(&key).unwrap_or_default();
    let id = key["private_key_id"].as_str().unwrap_or("none");
    format!("{}-{}", short_id(&about.data_dir), id.get(..8).unwrap_or(id))
}

/// gcloud's configuration for a Homerun, as INI. An account that was activated in it (`before`) stays the active one; else
/// the owner is.
fn configuration(about: &About, api: &str, project: &str, region: &str, before: &str) -> String {
    let (address, port) = api.rsplit_once(':').unwrap_or((api, "80"));
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let path = |path: PathBuf| path.display().to_string();
    let table: &[(&str, &str, String)] = &[
        ("core", "project", project.to_owned()),
        ("core", "custom_ca_certs_file", path(about.authority())),
        ("core", "disable_usage_reporting", "true".to_owned()),
        ("proxy", "type", "http".to_owned()),
        ("proxy", "address", address.to_owned()),
        ("proxy", "port", port.to_owned()),
        ("run", "region", region.to_owned()),
        ("component_manager", "disable_update_check", "true".to_owned()),
        ("survey", "disable_prompts", "true".to_owned()),
    ];
    let activated = property::parse(before)
        .remove("core")
        .and_then(|mut core| core.remove("account"));
    let credentials = match activated {
        Some(account) => ("core", "account", account),
        None => ("auth", "credential_file_override", path(about.owner_key())),
    };
    let mut sections: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (section, name, value) in table.iter().chain([&credentials]) {
        sections
            .entry((*section).to_owned())
            .or_default()
            .insert((*name).to_owned(), value.clone());
    }
    property::print(&sections)
}

/// What a shell or a child needs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pointing {
    set: Vec<(String, String)>,
    unset: Vec<String>,
}

/// Writes the configuration and says which variables select it.
fn point(outside: &Outside<'_>, server: &Server) -> Result<Pointing, Error> {
    let about = &server.about;
    let directory = match outside.var("CLOUDSDK_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => outside.config_dir.join("gcloud").join(place(about)),
    };
    let file = directory.join("configurations").join(format!("config_{CONFIGURATION}"));
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    let text = configuration(about, server.api(), &server.project, server.region(), &before);
    if before != text {
        property::write_whole(&file, &text)?;
    }
    let unset = outside
        .environment
        .iter()
        .map(|(name, _)| name)
        .filter(|name| OVERRIDES.iter().any(|start| name.starts_with(start)))
        .cloned()
        .collect();
    let mut set = vec![
        ("HOMERUN_API".to_owned(), server.api().to_owned()),
        ("CLOUDSDK_ACTIVE_CONFIG_NAME".to_owned(), CONFIGURATION.to_owned()),
        ("CLOUDSDK_CONFIG".to_owned(), directory.display().to_string()),
        (CA.to_owned(), about.authority().display().to_string()),
    ];
    set.extend(path_with_proxy(outside)?);
    Ok(Pointing { set, unset })
}

/// `PATH` with a directory in front that has nothing but `cloud-run-proxy`: gcloud's `run services proxy` looks for it there
/// when it is no component of its own. None: it is in front already.
fn path_with_proxy(outside: &Outside<'_>) -> Result<Option<(String, String)>, Error> {
    let directory = outside.config_dir.join("bin");
    let link = directory.join("cloud-run-proxy");
    let failed = |source| Error::File {
        path: link.clone(),
        source,
    };
    if std::fs::read_link(&link).ok().as_ref() != Some(&outside.executable) {
        std::fs::create_dir_all(&directory).map_err(failed)?;
        // put beside and moved: a shell that looks for it meanwhile finds the old one or the new
        let draft = directory.join(format!(".cloud-run-proxy.{}", std::process::id()));
        std::os::unix::fs::symlink(&outside.executable, &draft)
            .and_then(|()| std::fs::rename(&draft, &link))
            .map_err(failed)?;
    }
    let path = outside.var("PATH").unwrap_or_default();
    if std::env::split_paths(path).next().as_ref() == Some(&directory) {
        return Ok(None);
    }
    let joined = std::env::join_paths(std::iter::once(directory).chain(std::env::split_paths(path)));
    // a directory with a colon in its name cannot be on a PATH
    let joined = joined.ok().and_then(|joined| joined.into_string().ok());
    Ok(joined.map(|joined| ("PATH".to_owned(), joined)))
}

/// Variables for clients that are no gcloud.
fn for_all(server: &Server) -> Vec<(String, String)> {
    let proxy = format!("http://{}", server.api());
    let authority = server.about.authority().display().to_string();
    [
        ("HTTPS_PROXY", &proxy),
        ("https_proxy", &proxy),
        ("SSL_CERT_FILE", &authority),
        ("REQUESTS_CA_BUNDLE", &authority),
        ("NODE_EXTRA_CA_CERTS", &authority),
        ("CURL_CA_BUNDLE", &authority),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .collect()
}

/// A value as one word of a POSIX shell.
fn quoted(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+,=".contains(c);
    if !value.is_empty() && value.chars().all(is_plain) {
        value.to_owned()
    } else {
        format!("'{}'", value.replace('\'', r"'\''"))
    }
}

pub(crate) fn env(outside: &mut Outside<'_>, global: &Global, env: &Env) -> Result<(), Error> {
    let server = Server::find(outside, global)?;
    let mut pointing = point(outside, &server)?;
    if env.all {
        pointing.set.extend(for_all(&server));
    }
    for name in &pointing.unset {
        outside.print(&format!("unset {name}"))?;
    }
    for (name, value) in &pointing.set {
        outside.print(&format!("export {name}={}", quoted(value)))?;
    }
    if outside.out_is_terminal {
        outside.say("# to use them in this shell: eval \"$(homerun env)\"");
    }
    Ok(())
}

pub(crate) fn gcloud(outside: &mut Outside<'_>, global: &Global, gcloud: &Gcloud) -> Result<(), Error> {
    let server = Server::find(outside, global)?;
    let program = find_gcloud(outside)?;
    let mut pointing = point(outside, &server)?;
    // some of its words, and programs that it starts, ask past its configuration
    pointing.set.extend(for_all(&server));
    let exec = Exec {
        program: program.clone(),
        words: gcloud.words.clone(),
        set: pointing.set,
        unset: pointing.unset,
    };
    let source = (outside.exec)(&exec);
    Err(Error::Program {
        program: program.display().to_string(),
        source,
    })
}

/// The first `gcloud` on PATH that is not this program under another name.
fn find_gcloud(outside: &Outside<'_>) -> Result<PathBuf, Error> {
    let ourselves = std::fs::canonicalize(&outside.executable).ok();
    std::env::split_paths(outside.var("PATH").unwrap_or_default())
        .map(|directory| directory.join("gcloud"))
        .find(|candidate| std::fs::canonicalize(candidate).is_ok_and(|real| real.is_file() && Some(real) != ourselves))
        .ok_or_else(|| {
            Error::Failed(
                "Google's gcloud is not on PATH; install the Google Cloud CLI, or use the same \
                 words with homerun itself"
                    .to_owned(),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_gclouds_ini() {
        let about = About {
            project: "p".to_owned(),
            region: "r".to_owned(),
            data_dir: PathBuf::from("/var/lib/homerun"),
            domain: String::new(),
            http: String::new(),
            https: String::new(),
        };
        let written = |before| configuration(&about, "127.0.0.1:8787", "my-project", "us-central1", before);
        let activated = written("[core]\naccount = a@b\nproject = old\n[auth]\ncredential_file_override = /x\n");
        assert!(
            activated.contains("[core]\naccount = a@b\n") && !activated.contains("override"),
            "{activated}"
        );
        insta::assert_snapshot!(written(""), @r"
        [auth]
        credential_file_override = /var/lib/homerun/identity/owner-key.json
        [component_manager]
        disable_update_check = true
        [core]
        custom_ca_certs_file = /var/lib/homerun/ca/ca.pem
        disable_usage_reporting = true
        project = my-project
        [proxy]
        address = 127.0.0.1
        port = 8787
        type = http
        [run]
        region = us-central1
        [survey]
        disable_prompts = true
        ");
    }

    #[test]
    fn values_are_one_word_of_a_shell() {
        assert_eq!(quoted("/a/b-c.pem"), "/a/b-c.pem");
        assert_eq!(quoted("http://127.0.0.1:1"), "http://127.0.0.1:1");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("a'$(x)"), r"'a'\''$(x)'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn ids_are_eight_digits_and_differ() {
        let one = short_id(Path::new("/var/lib/homerun"));
        assert_eq!(one.len(), 8);
        assert_ne!(one, short_id(Path::new("/var/lib/homerun2")));
    }
}
