//! Public keys as self-signed certificates: the form that older clients fetch, and that key files are shown in.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use crate::jwt::NotAKey;

/// The certificate, in PEM, of the key whose private half is `private` (PKCS#8 PEM). Valid from `from` to `until` (Unix
/// seconds; None: as good as for ever).
pub(crate) fn certificate(private: &str, name: &str, from: u64, until: Option<u64>) -> Result<String, NotAKey> {
    let pair = KeyPair::from_pem(private).map_err(|_| NotAKey)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = match until {
        Some(until) => epoch + Duration::from_secs(until),
        None => rcgen::date_time_ymd(9999, 12, 31),
    };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.self_signed(&pair).map(|made| made.pem()).map_err(|_| NotAKey)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::SigningKey;

    #[test]
    fn a_certificate_is_of_its_key() {
        let (key, pem) = SigningKey::generate().expect("a key");
        let made = certificate(&pem, "x@p.iam.gserviceaccount.com", 1_800_000_000, None).expect("made");
        assert!(made.starts_with("-----BEGIN CERTIFICATE-----\n"), "{made}");
        let der = pem::parse(&made).expect("pem").into_contents();
        // the modulus stands in it as it stands in the key
        let modulus = key.checking_key().expect("public").modulus().to_vec();
        assert!(der.windows(modulus.len()).any(|bytes| bytes == modulus));
        assert!(certificate("no key", "x", 0, None).is_err());
    }
}
