//! What the launcher reports, passed on to whom it concerns; and another launcher when it dies.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use model::InstanceId;

use crate::{
    Inner, company,
    launch::Link,
    launcher::Duty,
    life::{Created, Entry, Event},
    wire::Report,
};

impl Inner {
    /// Passes on what the launcher reports; when it dies, starts another one. For ever, or until the engine closes.
    pub(crate) async fn keep_launcher(
        &self,
        program: PathBuf,
        duty: Duty,
        mut link: Arc<Link>,
        mut child: Option<tokio::process::Child>,
    ) {
        loop {
            while let Ok(Some((report, files))) = link.report().await {
                self.dispatch(report, files);
            }
            self.link.send_replace(None);
            if let Some(child) = &mut child
                && let Err(error) = child.wait().await
            {
                tracing::warn!(%error, "cannot wait for the launcher");
            }
            if self.closing.load(Ordering::SeqCst) {
                return;
            }
            tracing::error!("the launcher ended, and its instances with it");
            let entries: Vec<Arc<Entry>> = {
                let entries = self.entries.read().expect("no panic while held");
                entries.values().cloned().collect()
            };
            for entry in entries {
                // Full only when it has ended long ago.
                let _ = entry.events.try_send(Event::Lost(link.number));
            }
            let number = link.number + 1;
            (link, child) = loop {
                match Link::open(&program, &duty, number).await {
                    Ok((link, child)) => break (Arc::new(link), Some(child)),
                    Err(error) => {
                        tracing::error!(%error, "no launcher, trying again in a second");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            };
            self.link.send_replace(Some(Arc::clone(&link)));
        }
    }

    fn dispatch(&self, report: Report, files: Vec<OwnedFd>) {
        let (id, event) = match report {
            Report::Up | Report::Held { .. } => return,
            Report::Created { id, pid, spent } => {
                let mut files = files.into_iter();
                let (Some(process), Some(network)) = (files.next(), files.next()) else {
                    tracing::error!(id, "the launcher reported an instance without its files");
                    return;
                };
                let created = Created {
                    pid,
                    process,
                    network,
                    gate: files.next(),
                    spent,
                };
                (id, Event::Created(created))
            }
            Report::NotStarted { id, why } => (id, Event::NotStarted(why)),
            Report::Exited { id, end } => {
                let (_, container) = company::whose(&id);
                (id, Event::Exited(container, end))
            }
        };
        let entry = InstanceId::parse(company::whose(&id).0).and_then(|id| self.entry(&id));
        if let Some(entry) = entry {
            // Full only when it has ended long ago.
            let _ = entry.events.try_send(event);
        } else {
            tracing::warn!(id, "the launcher reported an unknown instance");
        }
    }
}
