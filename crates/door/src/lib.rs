//! The loopback port that clients are pointed at, and the local certificate authority behind it.
//!
//! Here lives one port with three faces: `CONNECT host:443`, answered with TLS by a leaf of the local authority (what
//! Google's gcloud does when its proxy is set), `GET http://host/..` as to a proxy, and plain HTTP for our own CLI. It
//! is a crate of its own because TLS for names that are not ours must be cut off from everything else: who may get a
//! certificate, and which connection is let in, is decided here and nowhere else. Nothing is ever forwarded to the
//! network.
//!
//! What enters is a listener, an [`Authority`] and a [`Door`] that says which hosts are ours and who answers for them;
//! what leaves are requests handed to one of two [`Answer`]s, the API or the ingress. The door knows no path and no
//! resource.
//!
//! ```no_run
//! # async fn wiring(api: door::Answer, ingress: door::Answer, cancelled: impl Future<Output = ()>)
//! #     -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! let clock: door::Clock = || 1_800_000_000; // unix seconds, of the system clock in earnest
//! let authority = Arc::new(door::Authority::open("/var/lib/homerun/tls".as_ref(), clock())?);
//! let side: door::SideOf = Arc::new(|host: &str| {
//!     host.ends_with(".a.run.localhost").then_some(door::Side::Ingress)
//! });
//! // the same leaves for the ingress' own https port:
//! let tls = authority.server_config(side.clone(), clock, &[b"h2", b"http/1.1"]);
//! let door = Arc::new(door::Door {
//!     authority,
//!     clock,
//!     side,
//!     api,     // Arc::new(|arrival, request| Box::pin(async move { .. }))
//!     ingress,
//!     service_ports: door::ServicePorts { https: vec![443, 8443], http: vec![80, 8081] },
//!     limits: door::Limits::default(),
//! });
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8787").await?;
//! let drained = door::serve(listener, door, cancelled).await;
//! # Ok(()) }
//! ```

mod authority;
mod pulse;
mod serve;
mod target;

pub use authority::{Authority, AuthorityError, Clock};
pub use serve::{Answer, Answering, Arrival, Body, BoxError, Door, Drained, Limits, Onward, serve};
pub use target::{ServicePorts, Side, SideOf};
