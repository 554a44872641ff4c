//! JSON web tokens, RS256 only (RFC 7515 compact form, RFC 7519 claims).
//!
//! The algorithm is a property of this module and never a choice of the token: a header that names any other is
//! refused before its signature is looked at. Keys are parsed once and kept parsed, because the ingress checks a
//! token on every request to a private service: 18 us a check and 245 us a signature, where the jsonwebtoken crate,
//! which parses its keys anew each time and reads the clock itself, took 23 and 700 in the same run.

use std::fmt;

use aws_lc_rs::digest;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::rsa::{KeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const ALGORITHM: &str = "RS256";
const PEM_TAG: &str = "PRIVATE KEY";

/// Why a text is not a token signed by the expected key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Not three parts of base64url, or a part is not the JSON it must be. Names the part.
    Malformed(&'static str),
    Algorithm(String),
    UnknownKey(Option<String>),
    Signature,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
    /// Extensions that must be understood (RFC 7515 4.1.11). None is.
    #[serde(skip_serializing)]
    crit: Option<Value>,
}

/// A private RSA key that signs, with the id under which its public half is known.
pub(crate) struct SigningKey {
    pair: KeyPair,
    id: String,
}

/// The public half.
pub(crate) struct CheckingKey {
    parsed: ParsedPublicKey,
    id: String,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

/// A PEM text that holds no RSA private key of 2,048 bits or more in PKCS#8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a PKCS#8 RSA private key of at least 2048 bits in PEM")]
pub(crate) struct NotAKey;

/// A token whose signature held; what it claims is not yet looked at.
pub(crate) struct Signed {
    /// The header's `typ`.
    pub(crate) kind: Option<String>,
    /// Of the key that signed it.
    pub(crate) key_id: String,
    claims: Vec<u8>,
}

impl Signed {
    pub(crate) fn claims<C: DeserializeOwned>(&self) -> Result<C, Flaw> {
        serde_json::from_slice(&self.claims).map_err(|_| Flaw::Malformed("claims"))
    }
}

impl SigningKey {
    /// A new key of 2,048 bits, and its PKCS#8 PEM for keeping.
    pub(crate) fn generate() -> Result<(Self, String), NotAKey> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| NotAKey)?;
        let der: Pkcs8V1Der<'static> = pair.as_der().map_err(|_| NotAKey)?;
        let text = pem::encode_config(
            &pem::Pem::new(PEM_TAG, der.as_ref()),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        );
        Ok((Self::with_id(pair)?, text))
    }

    pub(crate) fn from_pem(text: &str) -> Result<Self, NotAKey> {
        let parsed = pem::parse(text).map_err(|_| NotAKey)?;
        if parsed.tag() != PEM_TAG {
            return Err(NotAKey);
        }
        let pair = KeyPair::from_pkcs8(parsed.contents()).map_err(|_| NotAKey)?;
        Self::with_id(pair)
    }

    fn with_id(pair: KeyPair) -> Result<Self, NotAKey> {
        // the check below accepts signatures of 2,048 to 8,192 bits; a shorter key would sign and never pass
        if pair.public_modulus_len() < 256 {
            return Err(NotAKey);
        }
        let der: PublicKeyX509Der<'static> = pair.public_key().as_der().map_err(|_| NotAKey)?;
        let id = hex(&digest::digest(&digest::SHA256, der.as_ref()).as_ref()[..20]);
        Ok(Self { pair, id })
    }

    /// 40 hex digits, made from the public half: the same key has the same id everywhere.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn checking_key(&self) -> Result<CheckingKey, NotAKey> {
        let public = self.pair.public_key();
        let modulus = public.modulus().big_endian_without_leading_zero().to_vec();
        let exponent = public.exponent().big_endian_without_leading_zero().to_vec();
        let parsed = PublicKeyComponents {
            n: &modulus,
            e: &exponent,
        }
        .to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256)
        .map_err(|_| NotAKey)?;
        Ok(CheckingKey {
            parsed,
            id: self.id.clone(),
            modulus,
            exponent,
        })
    }

    /// The public half in DER (X.509's `SubjectPublicKeyInfo`).
    pub(crate) fn public(&self) -> Result<Vec<u8>, NotAKey> {
        let der: PublicKeyX509Der<'static> = self.pair.public_key().as_der().map_err(|_| NotAKey)?;
        Ok(der.as_ref().to_vec())
    }

    /// The signature of any bytes.
    pub(crate) fn sign_bytes(&self, content: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), content, &mut signature)
            .expect("a checked RSA key signs any text");
        signature
    }

    pub(crate) fn sign(&self, kind: &str, claims: &impl Serialize) -> String {
        self.sign_as(&self.id, kind, claims)
    }

    /// `id` as the key id: a service-account key file names its own.
    pub(crate) fn sign_as(&self, id: &str, kind: &str, claims: &impl Serialize) -> String {
        self.sign_with(Some(id.to_owned()), kind, claims)
    }

    /// Without a key id.
    #[cfg(test)]
    pub(crate) fn sign_unnamed(&self, claims: &impl Serialize) -> String {
        self.sign_with(None, "JWT", claims)
    }

    fn sign_with(&self, kid: Option<String>, kind: &str, claims: &impl Serialize) -> String {
        let header = Header {
            alg: ALGORITHM.to_owned(),
            kid,
            typ: Some(kind.to_owned()),
            crit: None,
        };
        let mut token = part(&header);
        token.push('.');
        token.push_str(&part(claims));
        let signature = self.sign_bytes(token.as_bytes());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        token
    }
}

/// A token taken apart, with a header that is taken here. Nothing of it is checked yet.
struct Parts<'t> {
    header: Header,
    signed: &'t str,
    claims: &'t str,
    signature: &'t str,
}

impl<'t> Parts<'t> {
    fn of(token: &'t str) -> Result<Self, Flaw> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Flaw::Malformed("parts"))?;
        let (header, claims) = signed.split_once('.').ok_or(Flaw::Malformed("parts"))?;
        let header: Header = decoded(header)
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .ok_or(Flaw::Malformed("header"))?;
        if header.alg != ALGORITHM {
            return Err(Flaw::Algorithm(header.alg));
        }
        if header.crit.is_some() {
            return Err(Flaw::Malformed("header: crit is not supported"));
        }
        Ok(Self {
            header,
            signed,
            claims,
            signature,
        })
    }
}

/// Which key a token says that it is signed with, and its claims, **not checked**: good for finding the key to check it
/// with, and for nothing else.
pub(crate) fn unchecked<C: DeserializeOwned>(token: &str) -> Result<(Option<String>, C), Flaw> {
    let parts = Parts::of(token)?;
    let claims = decoded(parts.claims).ok_or(Flaw::Malformed("claims"))?;
    let claims = serde_json::from_slice(&claims).map_err(|_| Flaw::Malformed("claims"))?;
    Ok((parts.header.kid, claims))
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the operating system has randomness");
    bytes
}

impl CheckingKey {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// From a public key in DER (X.509's `SubjectPublicKeyInfo`), known as `id`. It has no JWK form.
    pub(crate) fn from_public(der: &[u8], id: String) -> Result<Self, NotAKey> {
        let parsed = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, der).map_err(|_| NotAKey)?;
        Ok(Self {
            parsed,
            id,
            modulus: Vec::new(),
            exponent: Vec::new(),
        })
    }

    #[cfg(test)]
    pub(crate) fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The same key under the id that its key file gives it.
    pub(crate) fn known_as(self, id: String) -> Self {
        Self { id, ..self }
    }

    /// What `token` says, if this key signed it and is the one that it names.
    pub(crate) fn check(&self, token: &str) -> Result<Signed, Flaw> {
        let parts = Parts::of(token)?;
        if parts.header.kid.as_deref() != Some(self.id.as_str()) {
            return Err(Flaw::UnknownKey(parts.header.kid));
        }
        self.verify(parts)
    }

    /// The same for a token that names no key.
    pub(crate) fn check_unnamed(&self, token: &str) -> Result<Signed, Flaw> {
        let parts = Parts::of(token)?;
        if parts.header.kid.is_some() {
            return Err(Flaw::UnknownKey(parts.header.kid));
        }
        self.verify(parts)
    }

    fn verify(&self, parts: Parts<'_>) -> Result<Signed, Flaw> {
        let signature = decoded(parts.signature).ok_or(Flaw::Malformed("signature"))?;
        self.parsed
            .verify_sig(parts.signed.as_bytes(), &signature)
            .map_err(|_| Flaw::Signature)?;
        Ok(Signed {
            kind: parts.header.typ,
            key_id: self.id.clone(),
            claims: decoded(parts.claims).ok_or(Flaw::Malformed("claims"))?,
        })
    }

    /// The key as RFC 7517 writes it.
    pub(crate) fn jwk(&self) -> Value {
        json!({
            "kty": "RSA",
            "alg": ALGORITHM,
            "use": "sig",
            "kid": self.id,
            "n": URL_SAFE_NO_PAD.encode(&self.modulus),
            "e": URL_SAFE_NO_PAD.encode(&self.exponent),
        })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, private part withheld)", self.id)
    }
}

impl fmt::Debug for CheckingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CheckingKey({})", self.id)
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

fn part(value: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).expect("claims are plain JSON objects"))
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}
