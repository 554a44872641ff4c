//! The words people type, and how answers are printed: gcloud's grammar, formats, stages and texts for what Homerun
//! serves, and the few words that point other programs at a Homerun.
//!
//! It talks to a Homerun over HTTP like any client and knows no store; that the owner's key can be read is all the
//! permission it has. What enters is the words and [`Outside`] (streams, environment, time, chance, a signature); what
//! leaves is text on the two streams and an exit code: 0 done, 1 failed, 2 words not understood. Results go to `out`;
//! progress, questions, errors and the closing sentence go to `err`, as gcloud does, so that `--format` can be piped.

mod account;
mod artifact;
mod audience;
mod build;
mod call;
mod change;
mod collect;
mod credential;
mod docker_archive;
mod enable;
mod error;
mod flag;
mod format;
mod human;
mod iam;
mod import;
mod kept;
mod key;
mod mirror;
mod not_served;
mod outside;
mod pack;
mod parts;
mod progress;
mod project;
mod property;
mod proxy;
mod release;
mod revision;
mod secret;
mod secret_flags;
mod service;
mod settings;
mod source;
mod stage;
mod surroundings;
mod template;
mod token;
mod traffic;
mod trust;
mod why;
mod words;

pub use call::DEFAULT_API;
pub use outside::{Ask, Exec, Name, Outside, Proxying, Renew, Serve, Sign};
pub use proxy::cloud_run_proxy;
pub use words::grammar;

pub(crate) use error::Error;
use format::{Column, Format};
use iam::On;
use serde_json::Value;
use words::{Apis, Early, Images, Regions, Revisions, Run, Services, Word, Words};

/// Runs the command that `words` (without the program's name) ask for, and returns its exit code.
pub fn run(words: &[String], mut outside: Outside<'_>) -> u8 {
    let read = match words::read(words, outside.name.word()) {
        Ok(read) => read,
        Err(Early::Help(text)) => {
            return match outside.print(text.trim_end()) {
                Ok(()) => 0,
                Err(error) => u8::from(!error.reader_left()),
            };
        }
        Err(Early::Usage(text)) => {
            complain(&mut outside, words, &text);
            return 2;
        }
    };
    let done = dispatch(&mut outside, &read).and_then(|()| outside.out.flush().map_err(Error::Output));
    match done {
        Ok(()) => 0,
        Err(error) if error.reader_left() => 0,
        Err(error) => {
            complain(&mut outside, words, &error.text());
            error.exit_code()
        }
    }
}

fn complain(outside: &mut Outside<'_>, words: &[String], text: &str) {
    let path = words::path(words);
    let dot = if path.is_empty() { "" } else { "." };
    let name = outside.name.word();
    outside.say(&format!("ERROR: ({name}{dot}{path}) {}", text.trim_end()));
}

fn dispatch(outside: &mut Outside<'_>, words: &Words) -> Result<(), Error> {
    let global = &words.global;
    let format = match &global.format {
        Some(text) => Some(Format::parse(text).map_err(|why| Error::Usage(format!("--format: {why}")))?),
        None => None,
    };
    let order = Order {
        global,
        format: format.as_ref(),
    };
    if words.word.calls_the_api() {
        credential::warn_of_impersonation(outside, global)?;
    }
    match &words.word {
        Word::Run(Run::Deploy(deploy)) => service::deploy(outside, &order, deploy),
        Word::Run(Run::Services(services)) => match services {
            Services::List(listing) => service::list(outside, &order, listing),
            Services::Describe(one) => service::describe(outside, &order, &one.service),
            Services::Update(update) => service::update(outside, &order, update),
            Services::UpdateTraffic(update) => service::update_traffic(outside, &order, update),
            Services::Delete(delete) => service::delete(outside, &order, delete),
            Services::Replace(replace) => service::replace(outside, &order, replace),
            Services::AddIamPolicyBinding(binding) => {
                iam::add(outside, &order, On::Service(&binding.service), &binding.grant)
            }
            Services::RemoveIamPolicyBinding(binding) => {
                iam::remove(outside, &order, On::Service(&binding.service), &binding.grant)
            }
            Services::GetIamPolicy(one) => iam::get(outside, &order, On::Service(&one.service)),
            Services::SetIamPolicy(set) => iam::set(outside, &order, On::Service(&set.service), &set.file),
            Services::Proxy(proxy) => proxy::run(outside, &order, proxy),
            Services::WhyScaled(scaled) => why::scaled(outside, &order, scaled),
        },
        Word::Run(Run::Revisions(revisions)) => match revisions {
            Revisions::List(list) => revision::list(outside, &order, list),
            Revisions::Describe(one) => revision::describe(outside, &order, &one.revision),
            Revisions::Delete(delete) => revision::delete(outside, &order, delete),
        },
        Word::Run(Run::Regions(Regions::List(listing))) => service::regions(outside, &order, listing),
        Word::Services(Apis::Enable { services }) => enable::run(outside, &order, services),
        Word::Services(Apis::List { listing, .. }) => enable::list(outside, &order, listing),
        Word::Config(config) => property::run(outside, global, config),
        Word::Auth(auth) => token::run(outside, &order, auth),
        Word::Artifacts(artifacts) => artifact::run(outside, &order, artifacts),
        Word::Images(Images::List(listing)) => artifact::docker::everywhere(outside, &order, listing),
        Word::Images(Images::Collect { older_than }) => collect::run(outside, &order, *older_than),
        Word::Images(Images::Import(import)) => import::run(outside, global, import),
        Word::Images(Images::Mirror { name, image }) => mirror::set(outside, &order, name, image),
        Word::Images(Images::Mirrors(listing)) => mirror::list(outside, &order, listing),
        Word::Images(Images::Unmirror { name }) => mirror::remove(outside, &order, name),
        Word::Iam(iam) => account::run(outside, &order, iam),
        Word::Projects(projects) => project::run(outside, &order, projects),
        Word::Secrets(secrets) => secret::run(outside, &order, secrets),
        Word::Builds(builds) => build::run(outside, &order, builds),
        Word::Env(env) => surroundings::env(outside, global, env),
        Word::Gcloud(gcloud) => surroundings::gcloud(outside, global, gcloud),
        Word::Trust(trust) => trust::run(outside, global, trust),
    }
}

/// What every command of the API is given beside its own words.
#[derive(Debug, Clone, Copy)]
struct Order<'a> {
    global: &'a words::Global,
    format: Option<&'a Format>,
}

impl Order<'_> {
    /// A list: as asked for, else as a table of the columns.
    fn print_list(
        &self,
        outside: &mut Outside<'_>,
        mut items: Vec<Value>,
        limit: Option<usize>,
        columns: &[Column],
    ) -> Result<(), Error> {
        items.truncate(limit.unwrap_or(usize::MAX));
        let text = if let Some(format) = self.format {
            format.list(&items, columns)
        } else if items.is_empty() {
            outside.say("Listed 0 items.");
            return Ok(());
        } else {
            let ink = outside.out_ink();
            let mut rows = vec![columns.iter().map(|c| c.heading.to_owned()).collect()];
            rows.extend(items.iter().map(|item| {
                let cell = |column: &Column| match (column.cell)(item) {
                    symbol if column.heading.is_empty() => ink.symbol(&symbol),
                    text => text,
                };
                columns.iter().map(cell).collect::<Vec<_>>()
            }));
            format::table(&rows)
        };
        print_text(outside, &text)
    }

    /// One resource: as asked for, else as the given view.
    fn print_one(
        &self,
        outside: &mut Outside<'_>,
        item: &Value,
        view: impl FnOnce(&Outside<'_>) -> String,
    ) -> Result<(), Error> {
        let text = match self.format {
            Some(format) => format.one(item),
            None => view(outside),
        };
        print_text(outside, &text)
    }

    /// Asks before something is taken away. The default answer is yes.
    fn confirm(&self, outside: &mut Outside<'_>, what: &str) -> Result<(), Error> {
        if self.is_quiet(outside)? {
            return Ok(());
        }
        outside.say(what);
        outside.say("");
        match outside.ask("Do you want to continue (Y/n)?").as_deref() {
            Some("" | "y" | "yes") => Ok(()),
            Some(_) => Err(Error::Declined),
            None => Err(Error::Unattended),
        }
    }

    fn is_quiet(&self, outside: &Outside<'_>) -> Result<bool, Error> {
        let settings = property::Settings::open(outside)?;
        let configured = settings
            .get("core", "disable_prompts")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(self.global.quiet || configured)
    }
}

fn print_text(outside: &mut Outside<'_>, text: &str) -> Result<(), Error> {
    outside.out.write_all(text.as_bytes()).map_err(Error::Output)
}
