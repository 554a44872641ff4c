//! `auth print-access-token` and `auth print-identity-token`.

use crate::call::Server;
use crate::words::{Auth, Global};
use crate::{Error, Outside};

/// The audience of ID tokens that gcloud asks for when none is given; services accept it.
const GCLOUD_AUDIENCE: &str = "32555940559.apps.googleusercontent.com";

pub(crate) fn run(outside: &mut Outside<'_>, global: &Global, auth: &Auth) -> Result<(), Error> {
    let server = Server::find(outside, global)?;
    let token = match auth {
        Auth::PrintAccessToken => server.access_token(outside)?,
        Auth::PrintIdentityToken { audiences } => {
            let audience = audiences.as_deref().unwrap_or(GCLOUD_AUDIENCE);
            server.identity_token(outside, audience)?
        }
    };
    outside.print(&token)
}
