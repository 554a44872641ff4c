//! What programs of instances are told to trust: the machine's authorities and the one that signs for the ingress, so that
//! a service reaches another one by its URL.
//!
//! No image is changed: two files lie in a layer of their own below those of the image, which every instance has in
//! common, and variables name them where neither the image nor the container sets them itself.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Inside an instance.
const DIRECTORY: &str = "usr/share/homerun";
/// The authority alone, for programs that add it to what they trust already.
const AUTHORITY: &str = "authority.pem";
/// With those of the machine, for programs that trust what they are told instead of what they trusted before.
const ALL: &str = "certificates.pem";

/// Where systems keep the authorities that they trust, in one file.
const OF_MACHINE: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A layer, and the variables that name what is in it.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) layer: PathBuf,
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl Trust {
    /// Writes the layer below `directory`, unless it is there as it should be. `authority` is a certificate in PEM.
    pub(crate) fn write(directory: &Path, authority: &str) -> io::Result<Self> {
        let of_machine = OF_MACHINE.iter().find_map(|file| fs::read_to_string(file).ok());
        Self::of(directory, authority, of_machine.as_deref())
    }

    /// Without authorities of the machine nothing is named that would stand in the place of the image's own.
    fn of(directory: &Path, authority: &str, of_machine: Option<&str>) -> io::Result<Self> {
        let layer = directory.join("layer");
        let place = layer.join(DIRECTORY);
        fs::create_dir_all(&place)?;
        // Whoever programs run as, and whatever our own umask is.
        for directory in place.ancestors().take_while(|path| path.starts_with(&layer)) {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
        }
        put(&place.join(AUTHORITY), authority)?;
        let inside = |file: &str| format!("/{DIRECTORY}/{file}");
        let mut variables = vec![("NODE_EXTRA_CA_CERTS", inside(AUTHORITY))];
        if let Some(of_machine) = of_machine.filter(|text| text.contains("-----BEGIN CERTIFICATE-----")) {
            put(&place.join(ALL), &format!("{}\n{authority}", of_machine.trim_end()))?;
            variables.push(("SSL_CERT_FILE", inside(ALL)));
            variables.push(("REQUESTS_CA_BUNDLE", inside(ALL)));
        }
        Ok(Self { layer, variables })
    }
}

/// A file that everybody may read. One that is right is not touched: it may be mounted.
fn put(path: &Path, text: &str) -> io::Result<()> {
    if fs::read_to_string(path).is_ok_and(|held| held == text) {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, text)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644))?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted() {
        let place = tempfile::tempdir().expect("a directory");
        let machine = "-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----\n\n";
        let trust = Trust::of(place.path(), "ours\n", Some(machine)).expect("written");
        let read = |file: &str| fs::read_to_string(trust.layer.join(DIRECTORY).join(file)).expect("a file");
        assert_eq!(read(AUTHORITY), "ours\n");
        assert_eq!(
            read(ALL),
            "-----BEGIN CERTIFICATE-----\nroot\n-----END CERTIFICATE-----\nours\n"
        );
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
        let directory = trust.layer.join(DIRECTORY);
        assert_eq!([mode(&trust.layer), mode(&directory)], [0o755; 2]);
        assert_eq!(
            [mode(&directory.join(AUTHORITY)), mode(&directory.join(ALL))],
            [0o644; 2]
        );
        let named = |trust: &Trust| trust.variables.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert_eq!(
            named(&trust),
            ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"]
        );
        assert_eq!(trust.variables[1].1, "/usr/share/homerun/certificates.pem");
        // On a machine without any, an image's own stay what its programs trust.
        for none in [None, Some("")] {
            let trust = Trust::of(place.path(), "others\n", none).expect("written");
            assert_eq!(named(&trust), ["NODE_EXTRA_CA_CERTS"]);
            let file = trust.layer.join(DIRECTORY).join(AUTHORITY);
            assert_eq!(fs::read_to_string(file).expect("a file"), "others\n");
        }
    }
}
