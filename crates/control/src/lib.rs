//! Makes what runs equal what was asked.
//!
//! One module per resource: `service` makes revisions of changed templates, `revision` brings each to ready or
//! failed, `route` binds traffic to ready revisions, `scale` starts and drains instances, `secrets` gives
//! them the values of their secrets. Each is a pure plan over
//! whole states; [`Control::run`] reads everything, plans, acts, and sleeps until it is woken by an event or the clock.
//! Nobody calls control: it is woken, always looks at the whole, and the next turn is the retry.
//!
//! What enters: snapshots of the store, what the engine observes, the demand that the ingress counts, the time. What
//! leaves: writes of revision states and routings to the store, starts and stops to the engine, the route table and the
//! endpoints to the ingress. It never sees HTTP.

mod decisions;
pub mod garbage;
mod pull;
mod revision;
mod route;
mod scale;
mod secrets;
mod service;
mod turn;

pub use decisions::Decisions;
pub use secrets::Reader as SecretReader;
pub use turn::{Control, DemandOf, Holds, Links};
