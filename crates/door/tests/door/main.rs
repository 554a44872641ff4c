//! The door with real sockets, real TLS and real clients (rustls by way of hyper, and curl).

extern crate homerun_door as door;

mod authority;
mod drain;
mod setting;
mod slow;
mod streams;
mod tunnels;
