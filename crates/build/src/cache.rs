//! The layers that builds leave for the next ones: one storage for each image that is built, so that no build sees what
//! another image's build steps have made. Two builds of one image take turns. Together they have a limit; those that
//! were used longest ago go first, whole.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use tokio::sync::OwnedMutexGuard;

use crate::root::short_hash;

/// All caches of one data directory.
#[derive(Debug)]
pub(crate) struct Caches {
    dir: PathBuf,
    /// Bytes of all together.
    limit: u64,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The cache of one image, while it is one's turn.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) storage: PathBuf,
    _guard: OwnedMutexGuard<()>,
}

impl Caches {
    pub(crate) fn new(dir: PathBuf, limit: u64) -> Self {
        Self {
            dir,
            limit,
            turns: Mutex::default(),
        }
    }

    fn turn_of(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(key.to_owned()).or_default())
    }

    /// Waits for the turn of an image's name without its tag; `waits` is called when somebody else has it.
    ///
    /// # Errors
    /// When the storage cannot be made.
    pub(crate) async fn take(&self, image: &str, waits: impl AsyncFnOnce()) -> io::Result<Turn> {
        let key = short_hash(image);
        let turn = self.turn_of(&key);
        let guard = if let Ok(guard) = Arc::clone(&turn).try_lock_owned() {
            guard
        } else {
            waits().await;
            turn.lock_owned().await
        };
        let own = self.dir.join(&key);
        let storage = own.join("storage");
        let made = tokio::task::spawn_blocking(move || {
            fs::create_dir_all(&storage)?;
            // When it was used last.
            fs::write(own.join("used"), b"")?;
            Ok(storage)
        });
        let storage = made
            .await
            .map_err(io::Error::other)
            .and_then(|made: io::Result<_>| made)?;
        Ok(Turn { storage, _guard: guard })
    }

    /// Removes what is too much. What is in use stays. Blocks on the disk.
    ///
    /// # Errors
    /// What cannot be read or removed.
    pub(crate) fn trim(&self) -> io::Result<()> {
        let mut all = Vec::new();
        for entry in entries(&self.dir)? {
            let used = fs::metadata(entry.join("used")).and_then(|used| used.modified());
            all.push((used.unwrap_or(SystemTime::UNIX_EPOCH), size(&entry)?, entry));
        }
        all.sort_unstable();
        let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
        for (_, size, entry) in all {
            if total <= self.limit {
                break;
            }
            let key = entry.file_name().map(|name| name.to_string_lossy().into_owned());
            let Ok(_guard) = self.turn_of(&key.unwrap_or_default()).try_lock_owned() else {
                continue;
            };
            tracing::info!(bytes = size, cache = %entry.display(), "layers of old builds are removed");
            fs::remove_dir_all(&entry)?;
            total -= size;
        }
        Ok(())
    }
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(found) => found.map(|entry| entry.map(|entry| entry.path())).collect(),
        // Gone, or something else by now: builders work in there.
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Bytes on the disk of all that is below a directory; no link is followed.
pub(crate) fn size(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut total = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        let found = match fs::symlink_metadata(&at) {
            Ok(found) => found,
            // Removed in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        total += found.blocks() * 512;
        if found.is_dir() {
            open.extend(entries(&at)?);
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_used_longest_ago_goes_and_what_is_used_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let caches = Caches::new(dir.path().join("caches"), 150_000);
        let fill = |turn: &Turn| fs::write(turn.storage.join("layer"), vec![1; 100_000]).expect("written");
        let one = caches
            .take("one", async || panic!("nobody has it"))
            .await
            .expect("taken");
        fill(&one);
        let two = caches
            .take("two", async || panic!("nobody has it"))
            .await
            .expect("taken");
        fill(&two);
        // Both were taken within one tick of the clock of files.
        for (turn, second) in [(&one, 1), (&two, 2)] {
            let used = fs::File::options()
                .write(true)
                .open(turn.storage.with_file_name("used"));
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
            used.and_then(|used| used.set_modified(at)).expect("dated");
        }
        assert_ne!(one.storage, two.storage);
        caches.trim().expect("trimmed");
        assert!(one.storage.exists() && two.storage.exists(), "both are in use");
        let (first, second) = (one.storage.clone(), two.storage.clone());
        drop((one, two));
        caches.trim().expect("trimmed");
        assert!(!first.exists(), "the older one");
        assert!(second.exists());
    }

    #[tokio::test]
    async fn two_of_one_image_take_turns() {
        let dir = tempfile::tempdir().expect("a directory");
        let caches = Arc::new(Caches::new(dir.path().to_owned(), 1 << 30));
        let one = caches.take("one", async || ()).await.expect("taken");
        let (waits, waited) = tokio::sync::oneshot::channel();
        let other = Arc::clone(&caches);
        let second = tokio::spawn(async move {
            let tell = async || waits.send(()).expect("the test waits for it");
            other.take("one", tell).await
        });
        waited.await.expect("it waits");
        assert!(!second.is_finished());
        drop(one);
        second.await.expect("no panic").expect("taken");
    }
}
