//! Compiles the program of the tests' own image: one static executable, made from `probe/` with the compiler of this
//! build. Its path is given to the crate as `PROBE`.

use std::{env, path::PathBuf, process::Command};

fn main() {
    let var = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"));
    let source = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("probe/main.rs");
    let program = PathBuf::from(var("OUT_DIR")).join("probe");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");
    let mut command = Command::new(var("RUSTC"));
    command
        .args([
            "--crate-name",
            "probe",
            "--crate-type",
            "bin",
            "--edition",
            "2024",
            "-O",
        ])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols", "--target"])
        .arg(var("TARGET"))
        .arg("-o")
        .arg(&program)
        .arg(&source);
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} ended with {status}");
    println!("cargo::rustc-env=PROBE={}", program.display());
}
