//! The part of the program that callgrind counts. It toggles the collection of counts at these two functions, by their
//! names, so they must not be inlined: it counts inside the first, and pauses inside the second.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll};

/// For `--toggle-collect`.
pub(crate) const TOGGLES: [&str; 2] = ["*counted_part*", "*client_part*"];

/// Everything in here is counted.
#[inline(never)]
pub(crate) fn counted_part(work: &mut dyn FnMut()) {
    work();
    // Not a tail call, which would replace this function by its callee.
    black_box(());
}

/// The client's share of `work`, which is not counted.
#[inline(never)]
pub(crate) fn client_part(
    client: Pin<&mut dyn Future<Output = ()>>,
    cx: &mut Context<'_>,
) -> Poll<()> {
    black_box(client.poll(cx))
}
