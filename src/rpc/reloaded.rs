//! A value that is made of files, and made again when they change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ring::digest::{Context, SHA256};

type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;
type Fingerprint = [u8; 32];

/// The value, and where it comes from.
pub(in crate::rpc) struct Reloaded<T> {
    /// The name of a setting, and the file that it names.
    files: Vec<(&'static str, String)>,
    make: Make<T>,
    current: ArcSwap<T>,
    seen: Mutex<Seen>,
}

/// What the files held; a digest, so that no second copy of a private key is kept.
struct Seen {
    last: Fingerprint,
    /// What was last made into a value, or refused.
    judged: Fingerprint,
}

impl<T> Reloaded<T> {
    /// # Errors
    /// What `make` says of the contents of the files, or which of them cannot be read.
    pub(in crate::rpc) async fn load(
        files: Vec<(&'static str, String)>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&files).await;
        let print = fingerprint(&contents);
        let current = ArcSwap::from_pointee(make(&contents?)?);
        let seen = Mutex::new(Seen { last: print, judged: print });
        Ok(Self { files, make: Box::new(make), current, seen })
    }

    pub(in crate::rpc) fn current(&self) -> arc_swap::Guard<Arc<T>> {
        self.current.load()
    }

    /// Reads the files. When their contents have changed, and are the same as at the look before, the value is made anew: what is
    /// half written, or one of two files, is not taken. `at_once`: whatever they hold is taken now. What cannot be used is
    /// said once, and the value stays. Returns whether it was replaced.
    pub(in crate::rpc) async fn look(&self, at_once: bool, what: &str) -> bool {
        let contents = read(&self.files).await;
        let print = fingerprint(&contents);
        {
            let mut seen = self.seen.lock();
            let settled = std::mem::replace(&mut seen.last, print) == print;
            if !(at_once || settled && seen.judged != print) {
                return false;
            }
            seen.judged = print;
        }
        match contents.and_then(|contents| (self.make)(&contents)) {
            Ok(value) => {
                self.current.store(Arc::new(value));
                tracing::info!("{what}: the files were read again");
                true
            }
            Err(why) => {
                tracing::error!(%why, "{what}: the files cannot be used, and what was read before stays in force");
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
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}
