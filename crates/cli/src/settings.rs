//! The flags of `deploy` and `services update`, of which some are for one container.
//!
//! As gcloud has it, flags behind `--container=NAME` are for that container, and flags of a container may stand nowhere
//! else when there is one. So the words are cut there first, and each part is read by a grammar of its own.

use std::collections::BTreeSet;

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::audience::Audiences;
use crate::flag::{self, List, OrDefault, Pairs};
use crate::not_served;
use crate::parts::Parts;
use crate::words::{Early, Wait};

/// What `deploy` and `services update` may change.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "gcloud's flags come in pairs of --x and --no-x"
)]
pub(crate) struct Settings {
    /// The container that the flags behind it are for; without it they are for the one that takes requests
    #[arg(long, value_name = "CONTAINER")]
    container: Option<String>,
    /// Flags of containers by name, in the order of their first mention.
    #[arg(skip)]
    pub(crate) containers: Vec<(String, OfContainer)>,
    /// Containers to remove
    #[arg(long, value_name = "CONTAINER,...")]
    pub(crate) remove_containers: Vec<List>,
    #[command(flatten)]
    pub(crate) of_container: OfContainer,
    /// Instances that always run
    #[arg(long, value_parser = flag::count, value_name = "N|default")]
    pub(crate) min_instances: Option<OrDefault>,
    /// Instances at most
    #[arg(long, value_parser = flag::count, value_name = "N|default")]
    pub(crate) max_instances: Option<OrDefault>,
    /// Longest time of a request, such as 60, 60s or 10m
    #[arg(long, value_parser = flag::duration, value_name = "DURATION")]
    pub(crate) timeout: Option<u64>,
    /// Requests at once per instance
    #[arg(long, value_parser = flag::concurrency, value_name = "N|default")]
    pub(crate) concurrency: Option<OrDefault>,
    /// Give CPU during requests only
    #[arg(long, overrides_with = "no_cpu_throttling")]
    pub(crate) cpu_throttling: bool,
    /// Give CPU always
    #[arg(long, overrides_with = "cpu_throttling")]
    pub(crate) no_cpu_throttling: bool,
    /// Lift the CPU limit while an instance starts
    #[arg(long, overrides_with = "no_cpu_boost")]
    pub(crate) cpu_boost: bool,
    #[arg(long, overrides_with = "cpu_boost")]
    pub(crate) no_cpu_boost: bool,
    #[arg(long)]
    pub(crate) execution_environment: Option<ExecutionEnvironment>,
    /// Whom the service runs as
    #[arg(long)]
    pub(crate) service_account: Option<String>,
    /// Labels to add or change
    #[arg(long, visible_alias = "labels", value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    pub(crate) update_labels: Vec<Pairs>,
    /// Labels to remove
    #[arg(long, value_name = "KEY,...", conflicts_with = "clear_labels")]
    pub(crate) remove_labels: Vec<List>,
    /// Remove all labels
    #[arg(long)]
    pub(crate) clear_labels: bool,
    /// Leave the traffic where it is
    #[arg(long)]
    pub(crate) no_traffic: bool,
    /// Tag of the new revision, which gives it a URL of its own
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// Last part of the new revision's name
    #[arg(long)]
    pub(crate) revision_suffix: Option<String>,
    #[command(flatten)]
    pub(crate) parts: Parts,
    #[command(flatten)]
    pub(crate) audiences: Audiences,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ExecutionEnvironment {
    Gen1,
    Gen2,
}

/// Flags of one container.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "gcloud's flags come in pairs of --x and --no-x"
)]
pub(crate) struct OfContainer {
    /// Container image
    #[arg(long)]
    pub(crate) image: Option<String>,
    /// Port the container listens on
    #[arg(long, value_parser = flag::port, value_name = "PORT|default")]
    pub(crate) port: Option<OrDefault>,
    /// Memory limit, such as 512Mi or 1Gi
    #[arg(long)]
    pub(crate) memory: Option<String>,
    /// CPU limit, such as 1, 0.5 or 2000m
    #[arg(long)]
    pub(crate) cpu: Option<String>,
    /// Environment variables, in place of all there were
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...",
        conflicts_with_all = ["update_env_vars", "remove_env_vars", "clear_env_vars"])]
    pub(crate) set_env_vars: Vec<Pairs>,
    /// Environment variables to add or change
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...",
        conflicts_with = "clear_env_vars")]
    pub(crate) update_env_vars: Vec<Pairs>,
    /// Environment variables to remove
    #[arg(long, value_name = "KEY,...", conflicts_with = "clear_env_vars")]
    pub(crate) remove_env_vars: Vec<List>,
    /// Remove all environment variables
    #[arg(long)]
    pub(crate) clear_env_vars: bool,
    /// Variables (NAME=SECRET:VERSION) and files (/DIRECTORY/FILE=SECRET:VERSION) of secrets, in place of all there were
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=SECRET:VERSION,...",
        conflicts_with_all = ["update_secrets", "remove_secrets", "clear_secrets"])]
    pub(crate) set_secrets: Vec<Pairs>,
    /// Variables and files of secrets to add or change
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=SECRET:VERSION,...", conflicts_with = "clear_secrets")]
    pub(crate) update_secrets: Vec<Pairs>,
    /// Variables and files of secrets to remove
    #[arg(long, value_name = "KEY,...", conflicts_with = "clear_secrets")]
    pub(crate) remove_secrets: Vec<List>,
    /// Remove all variables and files of secrets
    #[arg(long)]
    pub(crate) clear_secrets: bool,
    /// Entry point, in place of the image's; empty for the image's own
    #[arg(long, value_name = "COMMAND,...")]
    pub(crate) command: Vec<List>,
    /// Arguments of the entry point; empty for the image's own
    #[arg(long, value_name = "ARG,...", allow_hyphen_values = true)]
    pub(crate) args: Vec<List>,
    /// Speak HTTP/2 to the container
    #[arg(long, overrides_with = "no_use_http2")]
    pub(crate) use_http2: bool,
    #[arg(long, overrides_with = "use_http2")]
    pub(crate) no_use_http2: bool,
    /// Whether the container has started: tcpSocket.port, httpGet.port, httpGet.path, grpc.port, grpc.service, and times;
    /// empty for the default
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    pub(crate) startup_probe: Vec<Pairs>,
    /// Whether the container must be restarted: keys as above without tcpSocket; empty for none
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    pub(crate) liveness_probe: Vec<Pairs>,
    /// Whether the instance gets new requests: keys as above and successThreshold; empty for none
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    pub(crate) readiness_probe: Vec<Pairs>,
    /// Where the container finds a volume: volume=NAME,mount-path=PATH
    #[arg(long, value_parser = flag::pairs, value_name = "KEY=VALUE,...")]
    pub(crate) add_volume_mount: Vec<Pairs>,
    /// Mounts to remove, by path
    #[arg(long, value_name = "MOUNT_PATH,...")]
    pub(crate) remove_volume_mount: Vec<List>,
    /// Remove all mounts of the container
    #[arg(long)]
    pub(crate) clear_volume_mounts: bool,
    /// Containers that must have started before this one starts; empty for none
    #[arg(long, value_name = "CONTAINER,...")]
    pub(crate) depends_on: Vec<List>,
}

/// The grammar behind `--container=NAME`.
#[derive(Debug, Parser)]
#[command(args_override_self = true, no_binary_name = true, disable_help_flag = true)]
struct OneContainer {
    #[command(flatten)]
    flags: OfContainer,
}

const CONTAINER: &str = "--container";
/// Of one service.
const MOST_CONTAINERS: usize = 10;

/// The words before the first `--container`, and those behind each, by name.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    pub(crate) of_all: Vec<String>,
    groups: Vec<(String, Vec<String>)>,
}

/// Cuts the words at each `--container`. A last one without a name stays where it is, to be refused.
pub(crate) fn cut(words: &[String]) -> Cut {
    let mut cut = Cut::default();
    let mut current = None;
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let name = match word.split_once('=') {
            Some((CONTAINER, name)) => Some(name.to_owned()),
            None if word == CONTAINER => words.next_if(|_| true).cloned(),
            _ => None,
        };
        if let Some(name) = name {
            let known = cut.groups.iter().position(|(of, _)| *of == name);
            current = Some(known.unwrap_or_else(|| {
                cut.groups.push((name, Vec::new()));
                cut.groups.len() - 1
            }));
        } else if let Some(at) = current {
            cut.groups[at].1.push(word.clone());
        } else {
            cut.of_all.push(word.clone());
        }
    }
    cut
}

impl Cut {
    /// Reads each group.
    ///
    /// # Errors
    /// Words that are not understood, and flags of a container before the first of them.
    pub(crate) fn read(self) -> Result<Vec<(String, OfContainer)>, Early> {
        if self.groups.is_empty() {
            return Ok(Vec::new());
        }
        let grammar = OneContainer::command();
        let flags: BTreeSet<&str> = grammar.get_arguments().filter_map(clap::Arg::get_long).collect();
        let early = |word: &&String| {
            let name = word.strip_prefix("--")?;
            let name = name.split_once('=').map_or(name, |(name, _)| name);
            flags.contains(name).then(|| name.to_owned())
        };
        if let Some(name) = self.of_all.iter().find_map(|word| early(&word)) {
            return Err(Early::Usage(format!(
                "When --container is specified --{name} must be specified after --container."
            )));
        }
        let read = |(name, words): (String, Vec<String>)| {
            let read = grammar
                .clone()
                .try_get_matches_from(&words)
                .and_then(|matches| OneContainer::from_arg_matches(&matches));
            let read = read.map_err(|error| not_served::early(&error, &words))?;
            Ok((name, read.flags))
        };
        self.groups.into_iter().map(read).collect()
    }
}

#[cfg(test)]
impl OfContainer {
    /// Of these words.
    pub(crate) fn of_words(words: &[&str]) -> Self {
        OneContainer::try_parse_from(words).expect("words of a container").flags
    }
}

impl Settings {
    /// The flags of each container: of those that are named, else of the one that takes requests.
    pub(crate) fn each_container(&self) -> impl Iterator<Item = (Option<&str>, &OfContainer)> {
        let unnamed = self.containers.is_empty().then_some((None, &self.of_container));
        let named = self.containers.iter().map(|(name, flags)| (Some(name.as_str()), flags));
        unnamed.into_iter().chain(named)
    }

    /// What a deploy of several containers must say, in gcloud's words.
    ///
    /// # Errors
    /// When it says something else.
    pub(crate) fn check_containers(&self) -> Result<(), String> {
        let invalid = |why: &str| Err(format!("Invalid value for [--container]: {why}"));
        let takes_requests = |flags: &OfContainer| flags.port.is_some() || flags.use_http2 || flags.no_use_http2;
        let ingress = self
            .containers
            .iter()
            .filter(|(_, flags)| takes_requests(flags))
            .count();
        if self.containers.len() > 1 && ingress != 1 {
            return invalid("Exactly one container must specify --port or --use-http2");
        }
        if self.containers.len() > MOST_CONTAINERS {
            return invalid(&format!("Services may include at most {MOST_CONTAINERS} containers"));
        }
        Ok(())
    }

    pub(crate) fn has_image(&self) -> bool {
        self.each_container().any(|(_, flags)| flags.image.is_some())
    }

    /// Whether this container, which takes requests, is given an image.
    pub(crate) fn has_image_for(&self, ingress: &str) -> bool {
        self.each_container()
            .any(|(name, flags)| name.is_none_or(|name| name == ingress) && flags.image.is_some())
    }
}
