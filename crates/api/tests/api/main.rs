//! The API through its one door, with a real store, real keys and real image content in a temporary directory.

mod builds;
mod conformance;
mod containers;
mod iam;
mod read;
mod refusals;
mod registry;
mod setting;
mod storage;
mod surface;
mod write;
