//! The part of the program that callgrind counts. It is told the names of these two functions, which therefore must
//! stay functions: it begins to collect when it enters the first, and pauses inside the second.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What callgrind is told, as `--toggle-collect`.
pub(crate) const TOGGLES: [&str; 2] = ["*counted_part*", "*client_part*"];

/// Everything in here counts.
#[inline(never)]
pub(crate) fn counted_part(work: &mut dyn FnMut()) {
    work();
    // Not a tail call, which would replace this function by its callee.
    black_box(());
}

/// The client's share of what happens in there, which does not.
#[inline(never)]
pub(crate) fn client_part(
    client: Pin<&mut dyn Future<Output = ()>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    black_box(client.poll(cx))
}
