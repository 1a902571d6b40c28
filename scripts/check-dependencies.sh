#!/usr/bin/env bash
# Checks the dependencies against deny.toml with cargo-deny. Without cargo-deny, or without access to the advisories, it prints
# that the check was skipped, and succeeds.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo deny --version >/dev/null 2>&1; then
    echo 'cargo deny: SKIPPED, because it is not installed (cargo install --locked cargo-deny)'
    exit
fi
cargo deny --locked check bans licenses sources
# The advisories are a Git repository on GitHub.
if why=$(cargo deny --locked fetch db 2>&1); then
    cargo deny --locked check advisories
else
    echo "cargo deny check advisories: SKIPPED, because the database cannot be fetched: $(grep -m 1 fatal <<<"$why" || echo "see cargo deny fetch db")"
fi
