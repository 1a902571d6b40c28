//! A value that is made of files and rebuilt when their contents change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ring::digest::{Context, SHA256};

type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;
type Fingerprint = [u8; 32];

pub(in crate::rpc) struct Reloaded<T> {
    /// The names of settings, and the files that they name.
    files: Vec<(&'static str, String)>,
    make: Make<T>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
}

/// Digests of the contents of the files; not the contents, because they may hold a private key.
struct Seen {
    /// At the last poll.
    last: Fingerprint,
    /// The contents that were last made into a value, or refused.
    tried: Fingerprint,
}

impl<T> Reloaded<T> {
    /// # Errors
    /// The error of `make`, or one sentence: which file cannot be read, and why.
    pub(in crate::rpc) async fn load(
        files: Vec<(&'static str, String)>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&files).await;
        let print = fingerprint(&contents);
        let current = ArcSwap::from_pointee(make(&contents?)?);
        let seen = Mutex::new(Seen { last: print, tried: print });
        Ok(Self { files, make: Box::new(make), current, seen })
    }

    pub(in crate::rpc) fn current(&self) -> arc_swap::Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the files and rebuilds the value when their contents have changed and were the same at two polls in a row: so
    /// half-written files, or one new file of two, are not used. `force` rebuilds it at once, whatever the contents. Contents
    /// that cannot be used are logged once, and the value stays. Returns whether the value was replaced. `what` names it in
    /// the log.
    pub(in crate::rpc) async fn poll(&self, force: bool, what: &str) -> bool {
        let contents = read(&self.files).await;
        let print = fingerprint(&contents);
        {
            let mut seen = self.seen.lock();
            let stable = std::mem::replace(&mut seen.last, print) == print;
            if !(force || stable && seen.tried != print) {
                return false;
            }
            seen.tried = print;
        }
        match contents.and_then(|contents| (self.make)(&contents)) {
            Ok(value) => {
                self.current.store(Arc::new(value));
                tracing::info!("{what}: reloaded from the files");
                true
            }
            Err(why) => {
                tracing::error!(%why, "{what}: the files cannot be used; the previous contents stay in force");
                false
            }
        }
    }
}

async fn read(files: &[(&'static str, String)]) -> Result<Vec<Vec<u8>>, String> {
    let mut contents = Vec::with_capacity(files.len());
    for (name, file) in files {
        let read = tokio::fs::read(file).await;
        contents.push(read.map_err(|error| {
            format!("{name} {file} cannot be used: {error}; give it a file that can be read")
        })?);
    }
    Ok(contents)
}

fn fingerprint(contents: &Result<Vec<Vec<u8>>, String>) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    match contents {
        Ok(contents) => contents.iter().for_each(|bytes| {
            context.update(&bytes.len().to_le_bytes());
            context.update(bytes);
        }),
        Err(why) => context.update(why.as_bytes()),
    }
    context.finish().as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}
