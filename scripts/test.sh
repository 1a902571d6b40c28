#!/usr/bin/env bash
# Runs every test. When tests fail, the last lines list them, each with its reason and the command that runs it alone;
# otherwise the last lines are the summary of the last test binary.
set -uo pipefail
cd "$(dirname "$0")/.."

# A failure prints its reason and its line. RUST_BACKTRACE=full adds the stack.
[ "${RUST_BACKTRACE:-}" = full ] || export RUST_BACKTRACE=0

output=$(mktemp)
trap 'rm -f "$output"' EXIT

# --tests leaves out doc tests and targets without tests: they take time to link, and their empty summaries would come last.
cargo test --locked --workspace --tests --no-fail-fast "$@" 2>&1 | tee "$output"
code=${PIPESTATUS[0]}
[ "$code" -eq 0 ] && exit 0

# At the end cargo lists the targets that failed, in the order in which they ran, such as `-p hotshelf --test it`. Targets of
# two packages may have the same name.
awk '
    /^ +Running / { binary = $NF; sub(/^.*\//, "", binary); sub(/-[0-9a-f]+\)$/, "", binary) }
    /^test .* \.\.\. FAILED$/ {
        name = $0; sub(/^test +(\[[a-z]+\] +)?/, "", name); sub(/ +\.\.\. FAILED$/, "", name)
        failed[++count] = name; of[count] = binary
    }
    /^---- .* ----$/ { reasoned = $0; gsub(/^---- |( stdout)? ----$/, "", reasoned); next }
    /^alone: / || !NF { if (reason[reasoned]) reasoned = "" }
    reasoned && NF && lines[reasoned]++ < 6 { reason[reasoned] = reason[reasoned] "      " $0 "\n" }
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
            printf "  %s\n%s      cargo test --locked %s -- --exact %s\n", failed[n], reason[failed[n]], targets[t], failed[n]
        }
        for (t = 1; t <= known; t++) if (!used[t]) printf "  %s\n      cargo test --locked %s\n", targets[t], targets[t]
        if (count + known == 0) print "  the build: see above"
    }
' "$output"
exit "$code"
