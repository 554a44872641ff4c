//! Who is calling: the keys of this Homerun, the tokens it gives out, and the checking of every token that comes back.
//!
//! Here live the issuer's RSA keys (they sign ID tokens, and are exchanged every two weeks), access tokens, the seal under
//! which what is secret is kept, the keys of service accounts with the owner's key file that Google's gcloud
//! authenticates with, the OAuth token endpoint as a function over them, and the conditions of policies, which take a
//! clock. They are one crate because a token is only worth what its key is: whoever mints also knows how to refuse.
//!
//! What enters is a directory that holds the keys, the form of a token request or the text of a token, and the time,
//! which is always an argument (Unix seconds). What leaves is a [`Caller`], a token, or an error that names the claim
//! that failed. Whether a caller *may* do a thing is a question for `model::iam`, whether to ask is one for the
//! ingress and the API. No HTTP here, and no private key in any `Debug` text.

mod access;
mod account;
mod certificate;
mod condition;
mod grant;
mod jwt;
mod key;
pub mod key_file;
mod ring;
mod seal;
mod self_signed;
mod token;
mod verified;

pub use access::AccessToken;
pub use account::{
    AccountError, Ask, ServiceAccountKey, new_account_key, new_managed_key, sign_assertion, sign_blob, sign_jwt,
};
pub use condition::{ConditionError, Conditions, MAX_EXPRESSION};
pub use grant::{JWT_BEARER, OauthError, TOKEN_URI};
pub use key::{KeyError, Keys, Owner, new_unique_id};
pub use seal::{NotSealed, Seal};
pub use self_signed::SelfSignedError;
pub use token::{
    CLOUD_PLATFORM_SCOPE, Caller, GCLOUD_AUDIENCE, IAM_SCOPE, IDENTITY_ISSUER, Issuer, TOKEN_SECONDS, TokenError,
};
pub use verified::IdentityToken;
