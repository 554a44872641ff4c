//! Who may call a private service: what the ingress asks of identity and of the store, and the signing keys' hours.

use std::{sync::Arc, time::Duration};

use model::ProjectId;
use store::Store;

/// How often the signing keys are looked at: they change every two weeks, and are shown a day ahead.
const LOOK_EVERY: Duration = Duration::from_hours(1);

/// Identity tokens are good for the service's audiences and, as on Cloud Run, for gcloud's client id. An account that is
/// gone or off calls nothing, and neither does the former one of an e-mail that another has now.
pub(crate) fn invokers(
    keys: &Arc<identity::Keys>,
    store: &Store,
    conditions: &Arc<identity::Conditions>,
    project: &ProjectId,
) -> ingress::Invokers {
    let (keys, store) = (keys.clone(), store.clone());
    ingress::Invokers {
        check: Box::new(move |token, audiences| {
            let accepted = |audience: &str| audience == identity::GCLOUD_AUDIENCE || audiences.take(audience);
            let token = keys
                .issuer()
                .check_identity(token, accepted, crate::seconds())
                .map_err(|error| error.to_string())?;
            let caller = &token.caller;
            store
                .look(|now| caller.check_account(now.account(&caller.email).map(AsRef::as_ref)))
                .map_err(|error| error.to_string())?;
            Ok(token.principal.clone())
        }),
        holds: holds(conditions, project),
    }
}

/// Whether the condition of a binding holds now.
pub(crate) fn holds(conditions: &Arc<identity::Conditions>, project: &ProjectId) -> control::Holds {
    let (conditions, project) = (conditions.clone(), project.clone());
    Box::new(move |condition, resource| conditions.hold(condition, resource, &project, crate::seconds()))
}

/// Exchanges the signing keys in time, for ever.
pub(crate) async fn rotate(keys: Arc<identity::Keys>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let of = keys.clone();
        // A new key takes a tenth of a second of CPU.
        let turned = tokio::task::spawn_blocking(move || of.rotate(crate::seconds())).await;
        match turned {
            Ok(Ok(true)) => tracing::info!("the next signing key is shown"),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "signing keys were not exchanged"
                );
            }
            Err(error) => tracing::error!(%error, "exchanging the signing keys broke off"),
        }
    }
}
