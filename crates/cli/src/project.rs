//! `projects ...`: the one project, and who may do what in all of it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::call::{Server, escape};
use crate::format::yaml_text;
use crate::iam::{self, Grant, On, PROJECTS};
use crate::{Error, Order, Outside};

#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true)]
pub(crate) enum Projects {
    /// Show the project
    Describe { project_id: String },
    /// Give a role on everything to a member
    AddIamPolicyBinding(Granting),
    /// Take a role on everything from a member
    RemoveIamPolicyBinding(Granting),
    /// Show who may do what in all of the project
    GetIamPolicy { project_id: String },
    /// Replace the whole policy by a file's
    SetIamPolicy {
        project_id: String,
        /// YAML or JSON file with a policy, - for stdin
        policy_file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Granting {
    project_id: String,
    #[command(flatten)]
    grant: Grant,
}

pub(crate) fn run(outside: &mut Outside<'_>, order: &Order<'_>, words: &Projects) -> Result<(), Error> {
    match words {
        Projects::Describe { project_id } => {
            let server = Server::find(outside, order.global)?;
            let path = format!("/v1/projects/{}", escape(project_id));
            let found = server.get(outside, PROJECTS, &path)?;
            order.print_one(outside, &found, |_| yaml_text(&found))
        }
        Projects::AddIamPolicyBinding(Granting { project_id, grant }) => {
            iam::add(outside, order, On::Project(project_id), grant)
        }
        Projects::RemoveIamPolicyBinding(Granting { project_id, grant }) => {
            iam::remove(outside, order, On::Project(project_id), grant)
        }
        Projects::GetIamPolicy { project_id } => iam::get(outside, order, On::Project(project_id)),
        Projects::SetIamPolicy {
            project_id,
            policy_file,
        } => iam::set(outside, order, On::Project(project_id), policy_file),
    }
}
