//! The life of one request, from its head to the head of its answer. Each step is one call.

use std::{sync::Arc, time::Duration};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use model::Protocol;
use tokio::time::Instant;

use crate::{
    Body, Ingress, Refusal, admission, affinity,
    arrival::Arrival,
    body::{Delivery, Outgoing, Served},
    forward,
    gate::Held,
    header,
    record::Tally,
    refusal::LARGEST_HTTP1_BODY,
    trace,
    upgrade::{self, Ends, Wanted},
    upstream::{self, Connection},
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
            Ok(passed) => passed.deliver(tally),
            Err(refusal) => {
                let body = refusal.body(tally.path());
                tally.refused(&refusal, body.len());
                refusal.response(body)
            }
        }
    }

    async fn pass(
        &self,
        arrival: &Arrival,
        mut request: Request<Incoming>,
        tally: &mut Tally,
    ) -> Result<Passed, Refusal> {
        let wanted = upgrade::wanted(&mut request)?;
        let host = header::host(&request)?;
        let (mut parts, body) = request.into_parts();
        tally.traced(trace::carry(&mut parts.headers, &self.chance));

        let route = self.find(&host)?;
        tally.routed(&route);
        admission::check(&route, &self.invokers, &mut parts.headers)?;

        let bond = self.affinity.read(&route, &parts.headers);
        let choice = affinity::choose(&route, bond, self.chance.percent())
            .ok_or_else(|| Refusal::NoRevision(route.service.clone()))?;
        let target = choice.target;
        tally.drawn(target);
        let protocol = header::protocol(&parts, target.protocol);
        let limit = match protocol {
            Protocol::Http1 => LARGEST_HTTP1_BODY,
            Protocol::H2c => u64::MAX,
        };
        if hyper::body::Body::size_hint(&body).lower() > limit {
            return Err(Refusal::RequestTooLarge);
        }
        let wanted = Wanted::of(wanted, protocol)?;

        let deadline = tally.deadline();
        let mut held = self.gates.enter(target, deadline, choice.instance.as_ref()).await?;
        tally.admitted(held.instance());

        let waits = header::waits_to_be_asked(&parts.headers);
        header::prepare(&mut parts, host, arrival, protocol)?;
        if let Some(wanted) = &wanted {
            wanted.ask(&mut parts, &self.chance);
        }
        let (body, upload) = Outgoing::new(body, limit);
        tally.uploads(upload.clone());
        let mut request = Request::from_parts(parts, body);
        if let Some(upload) = &upload
            && waits
            && protocol == Protocol::Http1
        {
            forward::ask_first(&mut request, upload);
        }
        let given_up = Instant::now() + HEARD;
        let (mut response, connection) = loop {
            let instance = held.instance();
            let (upload, may_switch) = (upload.as_deref(), wanted.is_some());
            let exchange = forward::exchange(&self.instances, instance, protocol, request, upload, may_switch);
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
            held = self.gates.enter(target, deadline, choice.instance.as_ref()).await?;
            tally.admitted(held.instance());
        };
        let goes_on = match wanted {
            Some(wanted) if response.status() == StatusCode::SWITCHING_PROTOCOLS => GoesOn::Switched(wanted),
            Some(wanted) if !wanted.may_be_declined_by(response.status()) => {
                let declined = upstream::Error::Declined(response.status());
                return Err(forward::refuse(&self.instances, held.instance(), None, declined).await);
            }
            Some(_) | None => GoesOn::Body(connection),
        };
        // A chunked answer has no length to be told by, and an answer to HEAD none of its own.
        if let Some(length) = hyper::body::Body::size_hint(response.body()).exact()
            && length > limit
        {
            return Err(Refusal::ResponseTooLarge(length));
        }
        if let Some(bond) = choice.bond(held.instance()) {
            let cookie = self.affinity.cookie(&route.service, &bond, arrival.is_secure());
            response.headers_mut().append(http::header::SET_COOKIE, cookie);
        }
        if let GoesOn::Body(_) = goes_on {
            header::finish(response.headers_mut());
            *response.version_mut() = http::Version::HTTP_11;
        }
        Ok(Passed {
            response,
            held,
            goes_on,
            deadline,
        })
    }
}

/// The head of an answer has come.
struct Passed {
    response: Response<Incoming>,
    held: Held,
    goes_on: GoesOn,
    deadline: Instant,
}

/// What comes behind the head.
enum GoesOn {
    Body(Connection),
    Switched(Wanted),
}

impl Passed {
    fn deliver(self, mut tally: Tally) -> Response<Body> {
        let Self {
            response,
            held,
            goes_on,
            deadline,
        } = self;
        tally.answered(response.status());
        match goes_on {
            GoesOn::Body(connection) => {
                let (parts, body) = response.into_parts();
                let delivery = Delivery {
                    held,
                    tally,
                    connection,
                };
                Response::from_parts(parts, Served::body(body, deadline, delivery))
            }
            GoesOn::Switched(wanted) => wanted.switched(response, Ends { held, tally, deadline }),
        }
    }
}
