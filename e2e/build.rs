//! Compiles the programs of the tests' own image: static executables, made from `probe/` with the compiler of this
//! build. Their paths are given to the crate as `PROBE` and `BROKEN`.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let sources = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("probe");
    println!("cargo::rerun-if-changed=build.rs");
    compile(&sources.join("main.rs"), "probe", "PROBE");
    compile(&sources.join("broken.rs"), "broken", "BROKEN");
}

fn compile(source: &Path, name: &str, variable: &str) {
    let program = PathBuf::from(var("OUT_DIR")).join(name);
    println!("cargo::rerun-if-changed={}", source.display());
    let mut command = Command::new(var("RUSTC"));
    command
        .args(["--crate-name", name, "--crate-type", "bin", "--edition", "2024", "-O"])
        .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols", "--target"])
        .arg(var("TARGET"))
        .arg("-o")
        .arg(&program)
        .arg(source);
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} ended with {status}");
    println!("cargo::rustc-env={variable}={}", program.display());
}

fn var(name: &str) -> OsString {
    env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"))
}
