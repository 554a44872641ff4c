//! The product as its users meet it: the real binary, Google's gcloud, our own command line, curl, real containers.
//!
//! A case is a text of commands with the transcript they must give (`cases/*.txt`). [`Homerun::up`] starts the binary
//! with a data directory, ports and a gcloud configuration of its own; a [`Session`] is one shell in which the
//! commands of a case are run; [`run_case`] compares what they print, through [`filter`] for what differs from run to
//! run. [`Homerun::stop`] ends it as an owner would and fails when anything of it is left on the machine.
//!
//! Nothing of the product is linked in: what enters is the path of the binary (`HOMERUN_BIN`, else the one that cargo
//! built), what leaves is a verdict.

mod buildpacks;
mod case;
mod docker;
mod filter;
mod footprint;
mod index;
mod layout;
mod leftover;
mod server;
mod session;
mod user;
mod wire;

pub use buildpacks::Builder;
pub use case::run_case;
pub use docker::Docker;
pub use filter::filter;
pub use footprint::Footprint;
pub use index::{Files, Packages, Wheels, auth_clients, language_base};
pub use layout::Layout;
pub use server::{Homerun, binary};
pub use session::{Client, Output, Session};
pub use user::User;
pub use wire::{Answer, exchange, read_answer};
