//! The ingress between real clients and real servers, over loopback: every case that does not depend on the client's
//! protocol runs over HTTP/1.1 and HTTP/2, plain and encrypted.

mod routing;
mod stage;
