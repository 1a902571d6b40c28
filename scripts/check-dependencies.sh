#!/usr/bin/env bash
# Checks the dependencies against deny.toml with cargo-deny. What this machine lacks is skipped, in one line that says so.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo deny --version >/dev/null 2>&1; then
    echo 'cargo deny: SKIPPED, because it is not installed (cargo install --locked cargo-deny)'
    exit
fi
cargo deny --locked check bans licenses sources
# The database of advisories is fetched from GitHub.
if why=$(cargo deny --locked fetch db 2>&1); then
    cargo deny --locked check advisories
else
    echo "cargo deny check advisories: SKIPPED, because the database cannot be fetched: $(grep -m 1 fatal <<<"$why" || echo "see cargo deny fetch db")"
fi
