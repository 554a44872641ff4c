//! One request to one instance: a kept connection or a new one, at most one second try, and what a broken one means.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use hyper::body::Incoming;
use model::{Fate, InstanceId, Protocol};

use crate::{
    Instances, Refusal,
    body::{Outgoing, Upload},
    upstream::{self, Connection},
};

/// The instance's end may be seen a little later than the broken connection: how often and after what time to ask
/// again, so that running out of memory is told as what it is.
const ASK_AGAIN: [Duration; 4] = [
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
];

/// Why there is no answer.
pub(crate) struct Failed {
    pub(crate) refusal: Refusal,
    /// The request, when it was never begun because its instance had ended already: another may take it.
    pub(crate) unsent: Option<Request<Outgoing>>,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, unsent: None }
    }
}

/// Sends the request and waits for the head of the answer.
///
/// A second try is made only on a kept connection that turned out closed before anything came back, and only when the
/// request cannot have been begun: it was never written, or it has no body and its method may be repeated. An answer
/// that switches protocols is one only for a request that asked for it.
pub(crate) async fn exchange(
    instances: &Instances,
    instance: &InstanceId,
    protocol: Protocol,
    request: Request<Outgoing>,
    upload: Option<&Upload>,
    may_switch: bool,
) -> Result<(Response<Incoming>, Connection), Failed> {
    let mut request = request;
    if let Some(mut connection) = Connection::kept(instance, protocol) {
        let spare = spare(&request);
        match connection.send(request, may_switch).await {
            Ok(response) => return Ok((response, connection)),
            Err((error, unsent)) => match unsent.or_else(|| spare.map(revive)) {
                Some(again) => request = again,
                None => return Err(refuse(instances, instance, upload, error).await.into()),
            },
        }
    }
    let opened = Connection::open(instances, instance, protocol).await;
    let mut connection = match opened {
        Ok(connection) => connection,
        Err(error) => {
            let refusal = refuse(instances, instance, upload, error).await;
            let unsent = match (instances.fate)(instance) {
                Fate::Ended | Fate::OutOfMemory { .. } => Some(request),
                Fate::Alive => None,
            };
            return Err(Failed { refusal, unsent });
        }
    };
    match connection.send(request, may_switch).await {
        Ok(response) => Ok((response, connection)),
        Err((error, _)) => Err(refuse(instances, instance, upload, error).await.into()),
    }
}

impl Connection {
    /// Err: with the request, when nothing of it was written.
    async fn send(
        &mut self,
        request: Request<Outgoing>,
        may_switch: bool,
    ) -> Result<Response<Incoming>, (upstream::Error, Option<Request<Outgoing>>)> {
        let sent = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(stream) => stream.sender.try_send_request(request).await,
        };
        match sent {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS && !may_switch => {
                Err((upstream::Error::Switching, None))
            }
            Ok(response) => Ok(response),
            Err(mut failed) => {
                let unsent = failed.take_message();
                Err((upstream::Error::Exchange(failed.into_error()), unsent))
            }
        }
    }
}

/// Makes the client send the body of `request` only when the instance asks for it, or leaves that open for too long: an
/// instance that answers without reading spares both the way (RFC 9110, 10.1.1).
pub(crate) fn ask_first(request: &mut Request<Outgoing>, upload: &Arc<Upload>) {
    request
        .headers_mut()
        .insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    request.body_mut().hold_back();
    let asked = upload.clone();
    hyper::ext::on_informational(request, move |informational| {
        if informational.status() == StatusCode::CONTINUE {
            asked.want();
        }
    });
}

/// A copy to try again with, when trying again does no harm.
fn spare(request: &Request<Outgoing>) -> Option<Parts> {
    let repeatable = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
    );
    if !repeatable || !request.body().is_empty() {
        return None;
    }
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy.into_parts().0)
}

fn revive(parts: Parts) -> Request<Outgoing> {
    Request::from_parts(parts, Outgoing::EMPTY)
}

/// What a failed exchange is: the client's fault, the instance's end, or a bad answer.
pub(crate) async fn refuse(
    instances: &Instances,
    instance: &InstanceId,
    upload: Option<&Upload>,
    error: upstream::Error,
) -> Refusal {
    if upload.is_some_and(Upload::is_too_large) {
        return Refusal::RequestTooLarge;
    }
    if upload.is_some_and(Upload::is_broken) {
        return Refusal::ClientGone;
    }
    let malformed = match &error {
        upstream::Error::Exchange(error) => error.is_parse(),
        upstream::Error::Switching | upstream::Error::Declined(_) => true,
        upstream::Error::Connect(_) => false,
    };
    let mut again = ASK_AGAIN.iter();
    loop {
        match (instances.fate)(instance) {
            Fate::OutOfMemory { limit_bytes } => {
                return Refusal::OutOfMemory {
                    instance: instance.clone(),
                    limit_bytes,
                };
            }
            Fate::Ended => break,
            Fate::Alive if malformed => break,
            Fate::Alive => match again.next() {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => break,
            },
        }
    }
    Refusal::Upstream {
        instance: instance.clone(),
        source: error,
    }
}
