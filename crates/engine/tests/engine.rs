//! Real instances on this machine: needs root, crun and rustc. Every test has an engine of its own and proves at its
//! end that nothing of it is left.

#[path = "engine/company.rs"]
mod company;
#[path = "engine/contract.rs"]
mod contract;
#[path = "engine/cpu.rs"]
mod cpu;
#[path = "engine/cutoff.rs"]
mod cutoff;
#[path = "engine/death.rs"]
mod death;
#[path = "engine/doors.rs"]
mod doors;
#[path = "engine/egress.rs"]
mod egress;
#[path = "engine/ends.rs"]
mod ends;
#[path = "engine/equal.rs"]
mod equal;
#[path = "engine/figures.rs"]
mod figures;
#[path = "engine/generations.rs"]
mod generations;
#[path = "engine/images.rs"]
mod images;
#[path = "engine/inside.rs"]
mod inside;
#[path = "engine/internet.rs"]
mod internet;
#[path = "engine/lab.rs"]
mod lab;
#[path = "engine/limits.rs"]
mod limits;
#[path = "engine/output.rs"]
mod output;
#[path = "engine/parked.rs"]
mod parked;
#[path = "engine/probes.rs"]
mod probes;
#[path = "engine/serving.rs"]
mod serving;
#[path = "engine/usage.rs"]
mod usage;
