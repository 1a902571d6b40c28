#!/usr/bin/env bash
# Runs every test. When one fails, the last lines are a list of those that failed, each with the command that runs it
# alone; otherwise they are the summary of the last test binary.
set -uo pipefail
cd "$(dirname "$0")/.."

# A failure is its reason and its place. RUST_BACKTRACE=full adds the stack.
[ "${RUST_BACKTRACE:-}" = full ] || export RUST_BACKTRACE=0

output=$(mktemp)
trap 'rm -f "$output"' EXIT

# Not the doc tests, nor targets without tests: their empty summaries would come last, and they are linked for nothing.
cargo test --locked --workspace --tests --no-fail-fast "$@" 2>&1 | tee "$output"
code=${PIPESTATUS[0]}
[ "$code" -eq 0 ] && exit 0

# Cargo names the targets that failed at the end, in the order in which they ran: `-p hotshelf --test it`. Two packages
# may have a target of the same name.
awk '
    /^ +Running / { binary = $NF; sub(/^.*\//, "", binary); sub(/-[0-9a-f]+\)$/, "", binary) }
    /^test .* \.\.\. FAILED$/ {
        name = $0; sub(/^test +(\[[a-z]+\] +)?/, "", name); sub(/ +\.\.\. FAILED$/, "", name)
        failed[++count] = name; of[count] = binary
    }
    /^    `-p .*`$/ {
        target = $0; gsub(/^ +`|`$/, "", target); targets[++known] = target
        parts = split(target, word, " ")
        of_target[known] = word[parts] == "--lib" ? word[2] : word[parts]; gsub("-", "_", of_target[known])
    }
    END {
        print "\nfailed:"
        for (n = 1; n <= count; n++) {
            if (of[n] != last || n == 1) {
                last = of[n]
                for (t = 1; t <= known && (used[t] || of_target[t] != last); t++) {}
                used[t] = 1
            }
            printf "  %s\n      cargo test --locked %s -- --exact %s\n", failed[n], targets[t], failed[n]
        }
        for (t = 1; t <= known; t++) if (!used[t]) printf "  %s\n      cargo test --locked %s\n", targets[t], targets[t]
        if (count + known == 0) print "  the build: see above"
    }
' "$output"
exit "$code"
