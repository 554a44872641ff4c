//! Compiles the program of the built-in hello image, so that the binary can carry it: one static executable, made from
//! `images/hello` with the compiler of this build. Its path is given to the crate as `HOMERUN_HELLO`, for
//! `include_bytes!(env!("HOMERUN_HELLO"))`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let var = |name: &str| env::var_os(name).unwrap_or_else(|| panic!("cargo sets {name} for build scripts"));
    let source = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../../images/hello/src/main.rs");
    let program = PathBuf::from(var("OUT_DIR")).join("hello");
    println!("cargo::rerun-if-changed={}", source.display());
    println!("cargo::rerun-if-changed=build.rs");

    let mut remapped = source.parent().expect("a file has a directory").as_os_str().to_owned();
    remapped.push("=hello");
    let mut command = Command::new(var("RUSTC"));
    command
        .args(["--crate-name", "hello", "--crate-type", "bin", "--edition", "2024"])
        // Static: the image holds nothing to link with. Without unwinding and symbols it is a third of the size.
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "panic=abort",
            "-C",
            "strip=symbols",
        ])
        // Always optimised and in one piece, whatever the profile: the same program gives the same image digest.
        .args(["-C", "opt-level=3", "-C", "codegen-units=1", "-C", "metadata=hello"])
        // Nor does it tell where it was built.
        .arg("--remap-path-prefix")
        .arg(remapped)
        .arg("--target")
        .arg(var("TARGET"))
        .arg("-o")
        .arg(&program)
        .arg(&source);
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        let mut linker_is = std::ffi::OsString::from("linker=");
        linker_is.push(linker);
        command.arg("-C").arg(linker_is);
    }
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(status.success(), "{command:?} ended with {status}");
    println!("cargo::rustc-env=HOMERUN_HELLO={}", program.display());
}
