//! Whether the instances trusted their memory, as they say themselves.

use std::convert::Infallible;
use std::time::Duration;

use crate::instance::Instance;

const INTERVAL: Duration = Duration::from_millis(100);

/// What looks at `hotshelf_hot_lease_valid` came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trust {
    /// Looks that were answered.
    pub samples: usize,
    /// Those that found memory not trusted.
    pub lapses: usize,
}

impl Trust {
    /// Looks at every instance, again and again. An instance that does not answer says nothing.
    pub(crate) async fn watch(&mut self, instances: &[Instance]) -> Infallible {
        loop {
            for instance in instances {
                let Some(valid) = instance.metric("hotshelf_hot_lease_valid").await else {
                    continue;
                };
                self.samples += 1;
                self.lapses += usize::from(valid < 1.0);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}
