//! Who is calling: the keys of this Homerun, the tokens it gives out, and the checking of every token that comes back.
//!
//! Here live the issuer's RSA key (signs access and ID tokens), the owner's service account with the key file that
//! Google's gcloud authenticates with, and the OAuth token endpoint as a function over both. They are one crate
//! because a token is only worth what its key is: whoever mints also knows how to refuse.
//!
//! What enters is a directory that holds the keys, the form of a token request or the text of a token, and the time,
//! which is always an argument (Unix seconds). What leaves is a [`Caller`], a token, or an error that names the claim
//! that failed. Whether a caller *may* do a thing is a question for `model::iam`, whether to ask is one for the
//! ingress and the API. No HTTP here, and no private key in any `Debug` text.

mod account;
mod grant;
mod jwt;
mod key;
pub mod key_file;
mod token;

pub use account::{AccountError, Ask, ServiceAccountKey, sign_assertion};
pub use grant::{JWT_BEARER, OauthError, TOKEN_URI};
pub use key::{KeyError, Keys, Owner};
pub use token::{CLOUD_PLATFORM_SCOPE, Caller, GCLOUD_AUDIENCE, IDENTITY_ISSUER, Issuer, TOKEN_SECONDS, TokenError};
