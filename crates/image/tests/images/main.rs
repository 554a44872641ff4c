//! The image store from outside: real archives in, real directories out, a real registry on loopback, and overlayfs of
//! this machine as the judge of what a stack of layers shows. Runs as root: layers keep their owners.

extern crate homerun_image as image;

mod blobs;
mod collect;
mod fixture;
mod layout;
mod pull;
mod stack;
mod unpack;
