//! A new key for all values: `POST /homerun/v1/secrets:rotateKey`. Homerun's own; Google does it unseen.

use http::{Response, StatusCode};
use model::{SecretVersionState, with_causes};
use secret::Owner;
use serde_json::json;

use crate::{
    error::{Code, Error},
    reply::{self, Body},
    surface::Surface,
};

/// One at a time: a key that another rotation has just made must not be forgotten by this one.
static ROTATING: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Makes a key, puts every data key under it, and forgets the keys before it. When it breaks off both keys stay, and
/// the next one goes on.
pub(crate) async fn rotate(surface: &Surface) -> Result<Response<Body>, Error> {
    let _alone = ROTATING.lock().await;
    let vault = surface.vault.clone();
    written(tokio::task::spawn_blocking(move || vault.rotate()).await)?;
    let (vault, project) = (surface.vault.clone(), surface.site.project.clone());
    let rewrapped = surface.store.transact(move |transaction| {
        let all: Vec<_> = transaction.snapshot().secret_versions.values().cloned().collect();
        let mut count = 0_u64;
        for version in all {
            let owner = Owner {
                project: &project,
                version: &version.key,
            };
            let Some(sealed) = version.state.sealed() else {
                continue;
            };
            let rewrapped = vault.rewrap(owner, sealed);
            let Some(sealed) = rewrapped.map_err(|error| Error::new(Code::FailedPrecondition, error.to_string()))?
            else {
                continue;
            };
            let mut version = version.as_ref().clone();
            version.state = match version.state {
                SecretVersionState::Enabled(_) => SecretVersionState::Enabled(sealed),
                SecretVersionState::Disabled(_) => SecretVersionState::Disabled(sealed),
                SecretVersionState::Destroyed { at } => SecretVersionState::Destroyed { at },
            };
            transaction.put_secret_version(version);
            count += 1;
        }
        Ok::<_, Error>(count)
    });
    let count = rewrapped.await?;
    let vault = surface.vault.clone();
    written(tokio::task::spawn_blocking(move || vault.retire()).await)?;
    Ok(reply::json(StatusCode::OK, &json!({ "versions": count.to_string() })))
}

fn written(done: Result<Result<(), secret::KeyFileError>, tokio::task::JoinError>) -> Result<(), Error> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        tracing::error!(error, "the keys of secrets were not changed");
        Error::new(Code::Unavailable, with_causes(error))
    };
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}
