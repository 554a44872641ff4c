//! The API through its one door, with a real store, real keys and real image content in a temporary directory.

mod accounts;
mod builds;
mod conformance;
mod containers;
mod iam;
mod metadata;
mod permits;
mod read;
mod refusals;
mod registry;
mod secret_readers;
mod secrets;
mod setting;
mod speaking;
mod storage;
mod surface;
mod write;
