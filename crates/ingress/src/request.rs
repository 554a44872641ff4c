//! The life of one request, from its head to the head of its answer. Each step is one call.

use std::{sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use model::Protocol;
use tokio::time::Instant;

use crate::{
    Body, Ingress, Refusal, admission,
    arrival::Arrival,
    body::{Delivery, Outgoing, Served},
    forward, header,
    record::Tally,
    refusal::LARGEST_HTTP1_BODY,
    trace,
};

/// An instance's end is known at once, what follows from it for the gates a moment later: how long a request that was
/// given an ended instance asks for another, and how often.
const HEARD: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Ingress {
    /// Takes one request to one instance and back. Every request is recorded once: when its answer's body ended, or
    /// when the client left, which is when this future or the body is dropped.
    pub async fn serve(self: &Arc<Self>, arrival: &Arrival, request: Request<Incoming>) -> Response<Body> {
        let mut tally = Tally::begin(self, arrival, &request);
        match self.pass(arrival, request, &mut tally).await {
            Ok(passed) => {
                let (parts, body) = passed.response.into_parts();
                tally.answered(parts.status);
                let delivery = Delivery {
                    held: passed.held,
                    tally,
                    connection: passed.connection,
                };
                Response::from_parts(parts, Served::body(body, passed.deadline, delivery))
            }
            Err(refusal) => {
                tally.refused(&refusal);
                Response::from(&refusal)
            }
        }
    }

    async fn pass(&self, arrival: &Arrival, request: Request<Incoming>, tally: &mut Tally) -> Result<Passed, Refusal> {
        header::refuse_upgrade(&request)?;
        let host = header::host(&request)?;
        let (mut parts, body) = request.into_parts();
        tally.traced(trace::carry(&mut parts.headers, &self.chance));

        let route = self.find(&host)?;
        tally.routed(&route);
        admission::check(&route, &self.invokers, &mut parts.headers)?;

        let target = route
            .pick(self.chance.percent())
            .ok_or_else(|| Refusal::NoRevision(route.service.clone()))?;
        tally.drawn(target);
        let limit = match target.protocol {
            Protocol::Http1 => LARGEST_HTTP1_BODY,
            Protocol::H2c => u64::MAX,
        };
        if hyper::body::Body::size_hint(&body).lower() > limit {
            return Err(Refusal::RequestTooLarge);
        }

        let deadline = tally.deadline();
        let mut held = self.gates.enter(target, deadline).await?;
        tally.admitted(held.instance());

        header::prepare(&mut parts, host, arrival, target.protocol)?;
        let (body, upload) = Outgoing::new(body, limit);
        tally.uploads(upload.clone());
        let mut request = Request::from_parts(parts, body);
        let given_up = Instant::now() + HEARD;
        let (mut response, connection) = loop {
            let instance = held.instance();
            let exchange = forward::exchange(&self.instances, instance, target.protocol, request, upload.as_deref());
            let failed = match tokio::time::timeout_at(deadline, exchange).await {
                Ok(Ok(answered)) => break answered,
                Ok(Err(failed)) => failed,
                Err(_) => return Err(Refusal::Deadline(target.timeout.duration())),
            };
            request = match failed.unsent {
                Some(request) if Instant::now() < given_up => request,
                Some(_) | None => return Err(failed.refusal),
            };
            drop(held);
            tokio::time::sleep(LOOK_AGAIN).await;
            held = self.gates.enter(target, deadline).await?;
            tally.admitted(held.instance());
        };
        // A chunked answer has no length to be told by, and an answer to HEAD none of its own.
        if let Some(length) = hyper::body::Body::size_hint(response.body()).exact()
            && length > limit
        {
            return Err(Refusal::ResponseTooLarge(length));
        }
        header::finish(response.headers_mut());
        *response.version_mut() = http::Version::HTTP_11;
        Ok(Passed {
            response,
            held,
            connection,
            deadline,
        })
    }
}

/// The head of an answer has come.
struct Passed {
    response: Response<Incoming>,
    held: crate::gate::Held,
    connection: crate::upstream::Connection,
    deadline: Instant,
}
