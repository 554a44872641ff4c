//! Joins the client's word `run services proxy` to what passes requests on.

use std::{io::Write as _, net::SocketAddr};

use anyhow::Context as _;
use http::{HeaderName, HeaderValue};

/// Runs until the process is told to end, or its time is over.
pub(crate) fn serve(proxying: cli::Proxying, renew: Option<&mut cli::Renew<'_>>) -> Result<(), String> {
    run(proxying, renew).map_err(|error| format!("{error:#}"))
}

fn run(proxying: cli::Proxying, renew: Option<&mut cli::Renew<'_>>) -> anyhow::Result<()> {
    let to: SocketAddr = proxying.to;
    let proxy = proxy::Proxy {
        listener: proxying.listener,
        target: proxy::Target::parse(&proxying.url, to).context("failed to parse host URL")?,
        authority: proxying.authority,
        header: HeaderName::from_bytes(proxying.header.as_bytes())
            .with_context(|| format!("{:?} is no name of a header", proxying.header))?,
        user_agent: proxying
            .user_agent
            .map(|text| HeaderValue::from_str(&text))
            .transpose()
            .context("no value of a header")?,
        http2: proxying.http2,
        token: proxying.token,
        up_time: proxying.up_time,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?;
    let told = |ended| {
        if ended == proxy::Ended::Told {
            // nobody may be there to read it
            let _ = writeln!(std::io::stderr(), "\nserver is shutting down...");
        }
    };
    runtime.block_on(proxy::run(proxy, renew, crate::seconds, told))?;
    // what was cut has nothing to wait for
    runtime.shutdown_background();
    Ok(())
}
