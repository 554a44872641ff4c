//! The local certificate authority: made at the first start, trusted by the clients of this machine, and signing a
//! leaf for each name that we answer for, at the moment a client asks for it.
//!
//! | file | mode | holds |
//! |---|---|---|
//! | `ca-key.pem` | 0600 | the authority's private key |
//! | `ca.pem` | 0644 | its certificate: what clients are told to trust |

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use identity::key_file::{self, KeyFileError};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::target::{self, SideOf};

/// Tells the time in Unix seconds. Given by wiring, so that nothing here reads the clock by itself.
pub type Clock = fn() -> u64;

const KEY_FILE: &str = "ca-key.pem";
const CERTIFICATE_FILE: &str = "ca.pem";
const DAY: u64 = 24 * 60 * 60;
const AUTHORITY_DAYS: u64 = 3650;
/// Far below the 397 days that clients take at most.
const LEAF_DAYS: u64 = 90;
/// A leaf with less than this left is replaced at the next handshake.
const RENEWAL_DAYS: u64 = 30;
/// Leaves kept in memory; the longest unused one makes room. One more costs a signature, a fraction of a millisecond.
const LEAVES: usize = 4096;

/// Why there is no usable authority in a directory.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no private key of the local authority", path.display())]
    Key { path: PathBuf, source: rcgen::Error },
    /// Making another key would silently break every client that trusts the certificate.
    #[error(
        "{} is there but its key {KEY_FILE} is not: put the key back, or remove the certificate to make a new \
         authority, which clients must then trust anew",
        certificate.display()
    )]
    KeyMissing { certificate: PathBuf },
    #[error("{} holds no certificate", path.display())]
    Certificate { path: PathBuf },
    #[error(
        "{} expired at {at} (unix seconds): remove it and {KEY_FILE} to make a new authority, which clients must \
         then trust anew",
        path.display()
    )]
    Expired { path: PathBuf, at: i64 },
    #[error("{} is a certificate, but not an authority's", path.display())]
    NotAnAuthority { path: PathBuf },
    /// Of another key.
    #[error(
        "{} cannot vouch for this server's names: remove it and {KEY_FILE} to make a new authority",
        path.display()
    )]
    Unfit { path: PathBuf, source: rustls::Error },
    #[error("cannot sign a certificate for {name}")]
    Sign { name: String, source: rcgen::Error },
    #[error("cannot use the key signed for {name}")]
    Use { name: String, source: rustls::Error },
}

/// The local authority with the leaves it has signed.
pub struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_file: PathBuf,
    leaves: Mutex<Leaves>,
}

impl Authority {
    /// Opens the authority in `dir`, which is made if absent and given mode 0755 (clients must be able to read
    /// `ca.pem`), or makes one that is good for ten years from `now` (Unix seconds).
    ///
    /// # Errors
    /// A file that cannot be read, written or understood; a key that others may read; a certificate whose key is
    /// missing or another, or that has expired.
    pub fn open(dir: &Path, now: u64) -> Result<Self, AuthorityError> {
        key_file::directory(dir, 0o755)?;
        let key_file = dir.join(KEY_FILE);
        let certificate_file = dir.join(CERTIFICATE_FILE);
        let key = open_key(&key_file, &certificate_file)?;
        let text = match read_text(&certificate_file)? {
            Some(text) => text,
            None => make_certificate(&certificate_file, &key, now)?,
        };
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| AuthorityError::Certificate {
            path: certificate_file.clone(),
        })?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key).map_err(|_| AuthorityError::Certificate {
            path: certificate_file.clone(),
        })?;
        let authority = Self {
            issuer,
            certificate,
            certificate_file,
            leaves: Mutex::new(Leaves::default()),
        };
        authority.prove(now)?;
        Ok(authority)
    }

    /// The certificate that clients are told to trust, in PEM.
    pub fn certificate_file(&self) -> &Path {
        &self.certificate_file
    }

    /// TLS for a listener that serves every name for which `side` knows one, and all of Google's. `alpn` in order of
    /// preference. A client that sends another name, or none, gets no certificate and its handshake fails.
    pub fn server_config(self: &Arc<Self>, side: SideOf, clock: Clock, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Resolver {
                authority: Arc::clone(self),
                side,
                clock,
            }));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        if let Ok(ticketer) = aws_lc_rs::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Arc::new(config)
    }

    /// The leaf for `host`: from memory, or signed now. Signing happens outside the lock; of two that sign the same
    /// name at once the later one's is kept, and both are good.
    pub fn leaf(&self, host: &str, now: u64) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let name = LeafName::of(host);
        if let Some(leaf) = self.leaves().find(&name.0, now) {
            return Ok(leaf);
        }
        let leaf = Arc::new(self.sign(&name, now)?);
        self.leaves().keep(name.0, Arc::clone(&leaf), now);
        Ok(leaf)
    }

    fn leaves(&self) -> std::sync::MutexGuard<'_, Leaves> {
        // a map of finished leaves is whole at every moment, also after a panic
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign(&self, name: &LeafName, now: u64) -> Result<CertifiedKey, AuthorityError> {
        let refused = |source| AuthorityError::Sign {
            name: name.0.clone(),
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(refused)?;
        let mut params = CertificateParams::new(vec![name.0.clone()]).map_err(refused)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Homerun");
        set_validity(&mut params, now, LEAF_DAYS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(refused)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = aws_lc_rs::sign::any_ecdsa_type(&key).map_err(|source| AuthorityError::Use {
            name: name.0.clone(),
            source,
        })?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
    }

    /// Signs a leaf and checks it as a client would, so that a certificate that has expired, is no authority's or
    /// belongs to another key is found at the start and not by the clients.
    fn prove(&self, now: u64) -> Result<(), AuthorityError> {
        const NAME: &str = "homerun.localhost";
        // two things that rustls does not look at in a trusted root, and other clients do
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&self.certificate).map_err(|_| AuthorityError::Certificate {
                path: self.certificate_file.clone(),
            })?;
        if !parsed.is_ca() {
            return Err(AuthorityError::NotAnAuthority {
                path: self.certificate_file.clone(),
            });
        }
        let at = parsed.validity().not_after.timestamp();
        if u64::try_from(at).is_ok_and(|at| at <= now) {
            return Err(AuthorityError::Expired {
                path: self.certificate_file.clone(),
                at,
            });
        }
        let unfit = |source| AuthorityError::Unfit {
            path: self.certificate_file.clone(),
            source,
        };
        let leaf = self.sign(&LeafName::of(NAME), now)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).map_err(unfit)?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::new(aws_lc_rs::default_provider()))
                .build()
                .map_err(|error| unfit(rustls::Error::General(error.to_string())))?;
        let name = ServerName::try_from(NAME).expect("a DNS name");
        verifier
            .verify_server_cert(
                &leaf.cert[0],
                &[],
                &name,
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
            )
            .map_err(unfit)?;
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("certificate_file", &self.certificate_file)
            .finish_non_exhaustive()
    }
}

fn open_key(key_file: &Path, certificate_file: &Path) -> Result<KeyPair, AuthorityError> {
    let unusable = |source| AuthorityError::Key {
        path: key_file.to_owned(),
        source,
    };
    let text = if let Some(text) = key_file::read(key_file)? {
        text
    } else {
        if certificate_file.exists() {
            return Err(AuthorityError::KeyMissing {
                certificate: certificate_file.to_owned(),
            });
        }
        let text = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map_err(unusable)?
            .serialize_pem();
        key_file::create(key_file, &text, 0o600)?;
        // another first start may have been quicker
        key_file::read(key_file)?.unwrap_or(text)
    };
    KeyPair::from_pkcs8_pem_and_sign_algo(&text, &PKCS_ECDSA_P256_SHA256).map_err(unusable)
}

fn make_certificate(path: &Path, key: &KeyPair, now: u64) -> Result<String, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Homerun");
    // two Homeruns on one machine are told apart in its list of authorities
    let tail = key.public_key_raw().last_chunk().copied().unwrap_or_default();
    let name = format!("Homerun local authority {:08x}", u32::from_be_bytes(tail));
    params.distinguished_name.push(DnType::CommonName, name);
    set_validity(&mut params, now, AUTHORITY_DAYS);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let text = params
        .self_signed(key)
        .map_err(|source| AuthorityError::Sign {
            name: "the local authority".to_owned(),
            source,
        })?
        .pem();
    key_file::create(path, &text, 0o644)?;
    Ok(read_text(path)?.unwrap_or(text))
}

fn read_text(path: &Path) -> Result<Option<String>, AuthorityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuthorityError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// From one day before `now`, because the clocks of clients (containers, virtual machines) may be behind.
fn set_validity(params: &mut CertificateParams, now: u64, days: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(DAY));
    params.not_after = epoch + Duration::from_secs(now + days * DAY);
}

/// What a leaf is good for, and the key it is remembered by. Google's hosts share one wildcard per parent domain, as
/// Google's own certificates do; hosts of ours get their exact name.
struct LeafName(String);

impl LeafName {
    fn of(host: &str) -> Self {
        match host.split_once('.') {
            Some((_, parent)) if target::is_google(parent) => Self(format!("*.{parent}")),
            Some(_) | None => Self(host.to_owned()),
        }
    }
}

#[derive(Default)]
struct Leaves {
    by_name: HashMap<String, Leaf>,
    uses: u64,
}

struct Leaf {
    key: Arc<CertifiedKey>,
    signed: u64,
    last_use: u64,
}

impl Leaves {
    fn find(&mut self, name: &str, now: u64) -> Option<Arc<CertifiedKey>> {
        let leaf = self.by_name.get_mut(name)?;
        let good_until = leaf.signed + (LEAF_DAYS - RENEWAL_DAYS) * DAY;
        // a clock that was set back a day makes it not yet valid
        let good_from = leaf.signed.saturating_sub(DAY);
        if !(good_from..good_until).contains(&now) {
            return None;
        }
        self.uses += 1;
        leaf.last_use = self.uses;
        Some(Arc::clone(&leaf.key))
    }

    fn keep(&mut self, name: String, key: Arc<CertifiedKey>, now: u64) {
        if self.by_name.len() >= LEAVES && !self.by_name.contains_key(&name) {
            let oldest = self.by_name.iter().min_by_key(|(_, leaf)| leaf.last_use);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.by_name.remove(&oldest);
            }
        }
        self.uses += 1;
        let leaf = Leaf {
            key,
            signed: now,
            last_use: self.uses,
        };
        self.by_name.insert(name, leaf);
    }
}

struct Resolver {
    authority: Arc<Authority>,
    side: SideOf,
    clock: Clock,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = target::normal(hello.server_name()?);
        if !target::is_google(&host) && (self.side)(&host).is_none() {
            return None;
        }
        match self.authority.leaf(&host, (self.clock)()) {
            Ok(leaf) => Some(leaf),
            Err(error) => {
                tracing::error!(%host, error = &error as &dyn std::error::Error, "no leaf");
                None
            }
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("authority", &self.authority)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_leaf_makes_room() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let now = 1_800_000_000;
        let authority = Authority::open(dir.path(), now).expect("opens");
        let key = authority.leaf("first.localhost", now).expect("a leaf");
        let mut leaves = Leaves::default();
        for number in 0..LEAVES {
            leaves.keep(format!("{number}"), Arc::clone(&key), now);
        }
        assert!(leaves.find("0", now).is_some(), "used again");
        leaves.keep("one more".to_owned(), key, now);
        assert_eq!(leaves.by_name.len(), LEAVES);
        assert!(leaves.find("0", now).is_some());
        assert!(leaves.find("1", now).is_none());
        assert!(leaves.find("one more", now).is_some());
    }
}
