//! The ingress between real clients and real servers, over loopback. A case whose outcome could depend on the client's
//! protocol runs over HTTP/1.1 and HTTP/2, plain and encrypted.

mod affinity;
mod body;
mod client;
mod closing;
mod failing;
mod hostile;
mod http2;
mod passing;
mod routing;
mod server;
mod stage;
mod streams;
mod upgrades;
mod waiting;
