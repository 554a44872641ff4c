//! Real instances on this machine: needs root, crun and rustc. Every test has an engine of its own and proves at its
//! end that nothing of it is left.

#[path = "engine/lab.rs"]
mod lab;
#[path = "engine/serving.rs"]
mod serving;
