//! How much a build writes to the disk. Its directories are looked through every second, less often where that takes
//! long: what comes between two looks may be too much, and is removed with the rest.

use std::{
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::OnceCell;

use crate::cache;

/// Between two looks, at the least.
const PAUSE: Duration = Duration::from_secs(1);
/// Of a processor's time for looks, at most one part of so many.
const SHARE: u32 = 10;

/// What a build adds to its directories.
#[derive(Debug)]
pub(crate) struct Growth {
    /// The layers of earlier builds, which do not count.
    storage: PathBuf,
    work: PathBuf,
    limit: u64,
    before: OnceCell<u64>,
}

impl Growth {
    pub(crate) fn new(storage: PathBuf, work: PathBuf, limit: u64) -> Self {
        Self {
            storage,
            work,
            limit,
            before: OnceCell::new(),
        }
    }

    /// Resolves when the limit was passed, with words for the client. What is there at the first call does not count.
    pub(crate) async fn passed(&self) -> io::Result<String> {
        let before = *self.before.get_or_try_init(|| self.size()).await?;
        loop {
            let began = Instant::now();
            let now = self.size().await?;
            if now.saturating_sub(before) > self.limit {
                let limit = self.limit;
                return Ok(format!(
                    "the build wrote more than {limit} bytes to the disk, the limit (homerun up --build-disk), and was ended"
                ));
            }
            tokio::time::sleep(PAUSE.max(began.elapsed() * SHARE)).await;
        }
    }

    async fn size(&self) -> io::Result<u64> {
        let (storage, work) = (self.storage.clone(), self.work.clone());
        let size = tokio::task::spawn_blocking(move || Ok(cache::size(&storage)? + cache::size(&work)?));
        size.await.map_err(io::Error::other)?
    }

    /// Removes what a builder that has ended left among the layers of earlier builds, and these with it: which is which
    /// knows nobody but the builder.
    pub(crate) async fn clear(&self) -> io::Result<()> {
        tokio::fs::remove_dir_all(&self.storage).await?;
        tokio::fs::create_dir(&self.storage).await
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn what_was_there_does_not_count() {
        let dir = tempfile::tempdir().expect("a directory");
        let [storage, work] = ["storage", "work"].map(|name| dir.path().join(name));
        for made in [&storage, &work] {
            fs::create_dir(made).expect("made");
        }
        fs::write(storage.join("layer"), vec![1; 3 << 20]).expect("written");
        let growth = Growth::new(storage.clone(), work.clone(), 1 << 20);
        let look = async || tokio::time::timeout(Duration::from_millis(200), growth.passed()).await;
        assert!(look().await.is_err(), "nothing was written yet");
        fs::write(work.join("one"), vec![1; 600 << 10]).expect("written");
        assert!(look().await.is_err(), "less than the limit");
        fs::write(storage.join("other"), vec![1; 600 << 10]).expect("written");
        let said = look().await.expect("passed").expect("readable");
        assert!(said.contains("more than 1048576 bytes"), "{said}");
        growth.clear().await.expect("removed");
        assert_eq!(fs::read_dir(&storage).expect("there").count(), 0);
    }
}
