//! The words people type: gcloud's grammar for what Homerun serves, and its own few words beside.
//!
//! Words enter, a [`Word`] with all its flags leaves, or the text to print with its exit code. What gcloud knows and
//! Homerun does not serve is refused by name (`not_served`), so that nothing is accepted and
//! ignored.

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::account::Iam;
use crate::artifact::Artifacts;
use crate::build::Builds;
use crate::flag::{self, List, Pairs, Percents};
use crate::iam::Grant;
use crate::not_served;
use crate::project::Projects;
use crate::proxy::Proxy;
use crate::secret::Secrets;
use crate::settings::{self, Settings};
use crate::surroundings::{Env, Gcloud};
use crate::token::Auth;
use crate::trust::Trust;

#[derive(Debug, Parser)]
#[command(
    name = "homerun",
    version,
    about = "Cloud Run on machines you own",
    args_override_self = true,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Words {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) word: Word,
}

/// Flags that every command takes.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// Address of the API port of the Homerun to speak to [env: `HOMERUN_API`] [default: 127.0.0.1:8787]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) api: Option<String>,
    /// Project, instead of the one that is configured or the server's own
    #[arg(long, global = true, value_name = "PROJECT_ID")]
    pub(crate) project: Option<String>,
    /// Region, instead of the one that is configured or the server's own
    #[arg(long, global = true)]
    pub(crate) region: Option<String>,
    /// How to print: json, yaml, value(KEYS), csv(KEYS), table(KEYS) or none
    #[arg(long, global = true)]
    pub(crate) format: Option<String>,
    /// Ask nothing, take the default answers
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Account to use, instead of the one that is configured or the owner
    #[arg(long, global = true, value_name = "EMAIL")]
    pub(crate) account: Option<String>,
    /// Speak as this account; of several each acts for the next, and the last is spoken for
    #[arg(long, global = true, value_name = "EMAIL,...")]
    pub(crate) impersonate_service_account: Option<String>,
    /// Only `managed` is there
    #[arg(long, global = true, hide = true)]
    pub(crate) platform: Option<Platform>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Platform {
    Managed,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Word {
    /// Services, their revisions and their traffic
    #[command(subcommand)]
    Run(Run),
    /// Which Google APIs are enabled
    #[command(subcommand)]
    Services(Apis),
    /// The defaults of this client
    #[command(subcommand)]
    Config(Config),
    /// Accounts and their tokens
    #[command(subcommand)]
    Auth(Auth),
    /// Repositories of images, and what they hold
    #[command(subcommand)]
    Artifacts(Artifacts),
    /// Container images
    #[command(subcommand)]
    Images(Images),
    /// Service accounts, roles and groups
    #[command(subcommand)]
    Iam(Iam),
    /// The project, and who may do what in all of it
    #[command(subcommand)]
    Projects(Projects),
    /// Images from source
    #[command(subcommand)]
    Builds(Builds),
    /// Secrets and their versions
    #[command(subcommand)]
    Secrets(Secrets),
    /// Print the shell exports that point gcloud at this Homerun
    Env(Env),
    /// Run Google's gcloud against this Homerun
    Gcloud(Gcloud),
    /// Install the local certificate authority in this machine's trust store
    Trust(Trust),
}

impl Word {
    /// Whether it is done by calls with a token.
    pub(crate) fn calls_the_api(&self) -> bool {
        !matches!(self, Self::Config(_) | Self::Env(_) | Self::Gcloud(_) | Self::Trust(_))
    }
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Run {
    /// Create a service or a new revision of it
    Deploy(Box<Deploy>),
    /// Look at services and change them
    #[command(subcommand)]
    Services(Services),
    /// Look at revisions and delete them
    #[command(subcommand)]
    Revisions(Revisions),
    /// Where services can run
    #[command(subcommand)]
    Regions(Regions),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Services {
    /// List services
    List(Listing),
    /// Show one service
    Describe(OneService),
    /// Change settings of a service
    Update(Box<Update>),
    /// Move traffic between revisions, name revisions by tags
    UpdateTraffic(UpdateTraffic),
    /// Delete a service with its revisions
    Delete(DeleteService),
    /// Create or replace a service from a YAML file
    Replace(Replace),
    /// Give a role to a member
    AddIamPolicyBinding(Binding),
    /// Take a role from a member
    RemoveIamPolicyBinding(Binding),
    /// Show who may do what
    GetIamPolicy(OneService),
    /// Replace the whole policy by a file's
    SetIamPolicy(SetPolicy),
    /// Let programs of this machine call a private service at a port of its loopback
    Proxy(Proxy),
    /// Show the last decisions on its instances, and why
    WhyScaled(Why),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Revisions {
    /// List revisions, newest first
    List(ListRevisions),
    /// Show one revision
    Describe(OneRevision),
    /// Delete a revision that no traffic and no tag needs
    Delete(DeleteRevision),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Regions {
    /// List regions
    List(Listing),
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Apis {
    /// Enable APIs by name, such as run.googleapis.com
    Enable {
        #[arg(required = true, value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// List enabled APIs
    List {
        /// The default, and all there is
        #[arg(long)]
        enabled: bool,
        #[command(flatten)]
        listing: Listing,
    },
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Config {
    /// Print a property, such as project or run/region
    GetValue { property: String },
    /// Print a property, such as project or run/region
    Get { property: String },
    /// Set a property
    Set { property: String, value: String },
    /// Forget a property
    Unset { property: String },
    /// Print all properties that are set
    List,
}

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Images {
    /// List all images of all repositories
    List(Listing),
    /// Push an OCI layout (a directory or a tar of one) or an archive of `docker save` to the registry
    Import(Import),
    /// Let names of another registry mean images of this one or of a third: in `FROM`, and in a deploy
    Mirror {
        /// One image, such as python:3.12-slim, which is docker.io/library/python:3.12-slim; a registry, such as docker.io;
        /// or all below a path, such as docker.io/library/*
        name: String,
        /// For one image another one: of this Homerun (us-central1-docker.pkg.dev/my-project/base/python:3.11), which is
        /// kept as it is now, or of another registry. For many a registry (mirror.example:5000) or all below a path
        image: String,
    },
    /// List the names of other registries that mean something else here
    Mirrors(Listing),
    /// Take such a name away
    Unmirror { name: String },
    /// Remove image content now that nothing needs any more
    Collect {
        /// Content that was wanted within this time stays, such as 24h or 10m; a push that runs may need it
        #[arg(long, value_parser = flag::duration, value_name = "TIME", default_value = "24h")]
        older_than: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Directory or tar file in the OCI image layout, or file of `docker save`
    pub(crate) layout: std::path::PathBuf,
    /// Full name, such as us-central1-docker.pkg.dev/my-project/docker-repo/my-api:v1
    pub(crate) image: String,
}

#[derive(Debug, Args)]
pub(crate) struct Listing {
    /// At most so many
    #[arg(long)]
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct OneService {
    pub(crate) service: String,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    pub(crate) service: String,
    /// At most so many
    #[arg(long)]
    pub(crate) limit: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct OneRevision {
    pub(crate) revision: String,
}

#[derive(Debug, Args)]
pub(crate) struct ListRevisions {
    /// Only of this service
    #[arg(long)]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteService {
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteRevision {
    pub(crate) revision: String,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Return at once, wait for nothing
    #[arg(long = "async", overrides_with = "no_async")]
    pub(crate) asynchronous: bool,
    #[arg(long, hide = true)]
    no_async: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Replace {
    /// YAML or JSON file with a Knative service, - for stdin
    pub(crate) file: std::path::PathBuf,
    #[command(flatten)]
    pub(crate) wait: Wait,
    /// Validate only
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Binding {
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) grant: Grant,
}

#[derive(Debug, Args)]
pub(crate) struct SetPolicy {
    pub(crate) service: String,
    /// YAML or JSON file with a policy, - for stdin
    pub(crate) file: std::path::PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    pub(crate) service: String,
    /// Directory to build the image from, in place of --image: by its Dockerfile, by buildpacks, or by what its files say
    #[arg(long, conflicts_with = "image")]
    pub(crate) source: Option<std::path::PathBuf>,
    /// Dockerfile of another name, below the source's directory
    #[arg(long, requires = "source", value_name = "FILE")]
    pub(crate) dockerfile: Option<std::path::PathBuf>,
    #[command(flatten)]
    pub(crate) make: crate::pack::Make,
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// Let everyone call the service
    #[arg(long, overrides_with = "no_allow_unauthenticated")]
    pub(crate) allow_unauthenticated: bool,
    /// Let only members with roles/run.invoker call the service
    #[arg(long, overrides_with = "allow_unauthenticated")]
    pub(crate) no_allow_unauthenticated: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    pub(crate) service: String,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateTraffic {
    pub(crate) service: String,
    /// Percents by revision; LATEST is whichever is the latest
    #[arg(long, value_parser = flag::percents, value_name = "REVISION=PERCENT,...",
        conflicts_with_all = ["to_tags", "to_latest"])]
    pub(crate) to_revisions: Vec<Percents>,
    /// Percents by tag
    #[arg(long, value_parser = flag::percents, value_name = "TAG=PERCENT,...",
        conflicts_with = "to_latest")]
    pub(crate) to_tags: Vec<Percents>,
    /// Everything to the latest revision, now and later
    #[arg(long)]
    pub(crate) to_latest: bool,
    /// Tags, in place of all there were
    #[arg(long, value_parser = flag::pairs, value_name = "TAG=REVISION,...",
        conflicts_with_all = ["update_tags", "remove_tags", "clear_tags"])]
    pub(crate) set_tags: Vec<Pairs>,
    /// Tags to add or move
    #[arg(long, value_parser = flag::pairs, value_name = "TAG=REVISION,...",
        conflicts_with = "clear_tags")]
    pub(crate) update_tags: Vec<Pairs>,
    /// Tags to remove
    #[arg(long, value_name = "TAG,...", conflicts_with = "clear_tags")]
    pub(crate) remove_tags: Vec<List>,
    /// Remove all tags
    #[arg(long)]
    pub(crate) clear_tags: bool,
    #[command(flatten)]
    pub(crate) wait: Wait,
}

/// Text that ends a command before it began.
#[derive(Debug)]
pub(crate) enum Early {
    /// Help or the version, for the stream of results.
    Help(String),
    /// Words that are not understood.
    Usage(String),
}

/// Reads the words after the program's name. `beta` before `run` is taken as gcloud takes it.
pub(crate) fn read(words: &[String], program: &'static str) -> Result<Words, Early> {
    let words = match words {
        [beta, rest @ ..] if beta == "beta" => rest,
        all => all,
    };
    // what follows `gcloud` is not ours to understand, not even `--quiet`
    let (words, for_gcloud) = match first(words) {
        Some(at) if words[at] == "gcloud" => words.split_at(at + 1),
        Some(_) | None => (words, &[] as &[String]),
    };
    let grammar = Words::command().name(program).bin_name(program);
    let by_container = ["run.deploy", "run.services.update"].contains(&path(words).as_str());
    let cut = by_container.then(|| settings::cut(words));
    let of_all = cut.as_ref().map_or(words, |cut| &cut.of_all);
    let given = std::iter::once(program.to_owned()).chain(of_all.iter().cloned());
    let mut read = grammar
        .try_get_matches_from(given)
        .and_then(|matches| <Words as clap::FromArgMatches>::from_arg_matches(&matches))
        .map_err(|error| not_served::early(&error, words))?;
    match &mut read.word {
        Word::Gcloud(gcloud) => gcloud.words = for_gcloud.to_vec(),
        Word::Run(Run::Deploy(deploy)) => deploy.settings.containers = cut.unwrap_or_default().read()?,
        Word::Run(Run::Services(Services::Update(update))) => {
            update.settings.containers = cut.unwrap_or_default().read()?;
        }
        Word::Run(_)
        | Word::Services(_)
        | Word::Config(_)
        | Word::Auth(_)
        | Word::Artifacts(_)
        | Word::Images(_)
        | Word::Builds(_)
        | Word::Iam(_)
        | Word::Projects(_)
        | Word::Secrets(_)
        | Word::Env(_)
        | Word::Trust(_) => {}
    }
    Ok(read)
}

/// Flags before the first word that take a value of their own.
const WITH_VALUE: [&str; 6] = [
    "--account",
    "--api",
    "--format",
    "--impersonate-service-account",
    "--project",
    "--region",
];

/// Where the first word stands that is no flag.
fn first(words: &[String]) -> Option<usize> {
    let mut at = 0;
    while let Some(word) = words.get(at).filter(|word| word.starts_with('-')) {
        at += if WITH_VALUE.contains(&word.as_str()) { 2 } else { 1 };
    }
    (at < words.len()).then_some(at)
}

/// The words of the command without its flags and arguments, joined by dots, as errors name it.
pub(crate) fn path(words: &[String]) -> String {
    let mut grammar = Words::command();
    let mut path: Vec<String> = Vec::new();
    let mut skip = false;
    for word in words {
        if skip {
            skip = false;
        } else if let Some(found) = grammar.find_subcommand(word) {
            path.push(word.clone());
            grammar = found.clone();
        } else if word.starts_with('-') {
            skip = WITH_VALUE.contains(&word.as_str());
        } else if word != "beta" {
            break;
        }
    }
    path.join(".")
}

/// The grammar of the client's words, for a program that adds its own words to it.
pub fn grammar() -> clap::Command {
    Words::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn usage(line: &str) -> String {
        match read(&words(line), "homerun").expect_err(line) {
            Early::Usage(text) => text,
            Early::Help(text) => panic!("{line} is help: {text}"),
        }
    }

    #[test]
    fn the_grammar_holds_together() {
        Words::command().debug_assert();
    }

    #[test]
    fn flags_that_are_not_served_are_refused_by_name() {
        for line in [
            "run deploy a --source=. --function=f",
            "run services update a --vpc-connector=c",
            "run services list --filter=x",
        ] {
            let text = usage(line);
            assert!(text.contains("is not served by Homerun"), "{line}: {text}");
        }
        assert!(usage("run jobs create x").contains("`run jobs` is not served"));
        assert!(usage("compute networks list").contains("`compute` is not served"));
    }

    #[test]
    fn typing_errors_get_a_suggestion() {
        let text = usage("run deploy a --image=i --memroy=1Gi");
        assert!(text.contains("--memroy") && text.contains("'--memory'"), "{text}");
        let text = usage("run service list");
        assert!(text.contains("'services'"), "{text}");
        let text = usage("run deploy a --image=i --set-env-vars=A");
        assert!(text.contains("--set-env-vars") && text.contains("KEY=VALUE"), "{text}");
    }

    #[test]
    fn the_last_of_a_flag_counts_and_maps_add_up() {
        let line = "run deploy a --memory=1Gi --memory=2Gi --cpu-throttling --no-cpu-throttling \
                    --set-env-vars=A=1 --set-env-vars B=2 --args=--x,-y --quiet --platform managed";
        let read = read(&words(line), "homerun").expect("words");
        let Word::Run(Run::Deploy(deploy)) = read.word else {
            panic!("another word")
        };
        assert!(read.global.quiet);
        assert_eq!(deploy.settings.of_container.memory.as_deref(), Some("2Gi"));
        assert!(deploy.settings.no_cpu_throttling && !deploy.settings.cpu_throttling);
        assert_eq!(flag::joined(&deploy.settings.of_container.set_env_vars).len(), 2);
        assert_eq!(flag::listed(&deploy.settings.of_container.args), ["--x", "-y"]);
    }

    #[test]
    fn each_container_has_its_flags() {
        let line = "run deploy a --quiet --max-instances 3 --container app --image=i --port 8080 --depends-on=side \
                    --container=side --image=j --memory=1Gi --container app --cpu=2";
        let read_line = read(&words(line), "homerun").expect("words");
        let Word::Run(Run::Deploy(deploy)) = read_line.word else {
            panic!("another word")
        };
        let [(app, one), (side, other)] = &deploy.settings.containers[..] else {
            panic!("{:?}", deploy.settings.containers)
        };
        assert_eq!((app.as_str(), side.as_str()), ("app", "side"));
        assert_eq!((one.image.as_deref(), one.cpu.as_deref()), (Some("i"), Some("2")));
        assert_eq!(
            (other.image.as_deref(), other.memory.as_deref()),
            (Some("j"), Some("1Gi"))
        );
        assert_eq!(flag::listed(&one.depends_on), ["side"]);
        assert!(deploy.settings.of_container.image.is_none());

        for (line, says) in [
            (
                "run deploy a --image=i --container=b",
                "--image must be specified after --container",
            ),
            (
                "run deploy a --container=b --max-instances=3",
                "unrecognized arguments: --max-instances",
            ),
            ("run deploy a --container=b --memroy=1Gi", "'--memory'"),
            ("run deploy a --container", "--container"),
            ("run services list --container=b", "unrecognized arguments: --container"),
        ] {
            let text = usage(line);
            assert!(text.contains(says), "{line}: {text}");
        }
    }

    #[test]
    fn errors_name_the_words() {
        assert_eq!(
            path(&words("run services update-traffic a --to-latest")),
            "run.services.update-traffic"
        );
        assert_eq!(path(&words("--project p beta run deploy")), "run.deploy");
    }
}
