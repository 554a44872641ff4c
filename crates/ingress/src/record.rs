//! The record of one request, written exactly once, however it ends.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, StatusCode, Version, header};
use hyper::body::Incoming;
use model::{InstanceId, RequestRecord, Route, RouteTarget};
use tokio::time::Instant;

use crate::{
    Ingress, Refusal,
    arrival::{Arrival, Open},
    body::Upload,
};

/// Counts while the request lasts; writes the record on drop. Until it knows better, the client left.
pub(crate) struct Tally {
    ingress: Arc<Ingress>,
    /// Until it is written.
    record: Option<Box<RequestRecord>>,
    started: Instant,
    timeout: Duration,
    upload: Option<Arc<Upload>>,
    _open: Open,
}

impl Tally {
    pub(crate) fn begin(ingress: &Arc<Ingress>, arrival: &Arrival, request: &Request<Incoming>) -> Self {
        let field = |value: Option<&HeaderValue>| {
            value.map_or_else(String::new, |value| {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            })
        };
        let uri = request.uri();
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let host = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => request
                .headers()
                .get(header::HOST)
                .and_then(|host| host.to_str().ok())
                .unwrap_or_default(),
        };
        let record = Box::new(RequestRecord {
            at: (ingress.now)(),
            latency_micros: 0,
            queued_micros: 0,
            first_byte_micros: 0,
            method: request.method().as_str().to_owned(),
            url: [arrival.scheme(), "://", host, path].concat(),
            status: 0,
            request_bytes: 0,
            response_bytes: 0,
            remote_ip: arrival.ip().to_owned(),
            user_agent: field(request.headers().get(header::USER_AGENT)),
            protocol: protocol(request.version()).to_owned(),
            trace: String::new(),
            service: None,
            revision: None,
            instance: None,
            refusal: None,
        });
        Self {
            ingress: ingress.clone(),
            record: Some(record),
            started: Instant::now(),
            timeout: Duration::ZERO,
            upload: None,
            _open: arrival.open(),
        }
    }

    /// Of the request, once its revision is drawn.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// When the request must have ended.
    pub(crate) fn deadline(&self) -> Instant {
        self.started + self.timeout
    }

    fn record(&mut self) -> &mut RequestRecord {
        self.record.as_mut().expect("it is written on drop")
    }

    pub(crate) fn routed(&mut self, route: &Route) {
        self.record().service = Some(route.service.clone());
    }

    pub(crate) fn drawn(&mut self, target: &RouteTarget) {
        self.record().revision = Some(target.revision.clone());
        self.timeout = target.timeout.duration();
    }

    pub(crate) fn admitted(&mut self, instance: &InstanceId) {
        let queued = micros(self.started.elapsed());
        self.record().queued_micros = queued;
        self.record().instance = Some(instance.clone());
    }

    pub(crate) fn traced(&mut self, trace: String) {
        self.record().trace = trace;
    }

    pub(crate) fn uploads(&mut self, upload: Option<Arc<Upload>>) {
        self.upload = upload;
    }

    /// The head of the answer goes out.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        // Not 0, which is an answer that never came.
        self.record().first_byte_micros = micros(self.started.elapsed()).max(1);
        self.record().status = status.as_u16();
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.record().response_bytes += bytes;
    }

    /// So many bytes went up and down an upgraded connection.
    pub(crate) fn passed(&mut self, up: u64, down: u64) {
        self.record().request_bytes = up;
        self.record().response_bytes = down;
    }

    /// The path that was asked for, without its query.
    pub(crate) fn path(&self) -> &str {
        let url = self.record.as_ref().map_or("", |record| record.url.as_str());
        let behind_host = url
            .splitn(4, '/')
            .nth(3)
            .map_or("", |rest| &url[url.len() - rest.len() - 1..]);
        match behind_host.split(['?', '#']).next() {
            Some("") | None => "/",
            Some(path) => path,
        }
    }

    /// The client is told so in `bytes` bytes.
    pub(crate) fn refused(&mut self, refusal: &Refusal, bytes: usize) {
        self.record().status = refusal.status().as_u16();
        self.record().response_bytes = bytes as u64;
        let elapsed = micros(self.started.elapsed());
        let record = self.record();
        if record.instance.is_none() && record.revision.is_some() {
            record.queued_micros = elapsed;
        }
        self.record().refusal = Some(model::with_causes(refusal));
    }

    /// The answer began and did not come to its end.
    pub(crate) fn broke_off(&mut self, why: &str) {
        self.record().refusal = Some(why.to_owned());
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        if self.record().status == 0 {
            self.refused(&Refusal::ClientGone, 0);
        }
        let Some(mut record) = self.record.take() else {
            return;
        };
        record.latency_micros = micros(self.started.elapsed());
        if let Some(upload) = &self.upload {
            record.request_bytes = upload.bytes();
            upload.stop();
        }
        (self.ingress.record)(record);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    }
}
