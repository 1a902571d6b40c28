#!/usr/bin/env bash
# Checks the configuration and the rules of Prometheus, and runs the tests of the rules.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! programs=$(scripts/prometheus.sh); then
    echo 'promtool: SKIPPED, because it is not installed (apt-get install prometheus)'
    exit
fi
"$programs"/promtool check config deploy/prometheus/prometheus.yml
"$programs"/promtool test rules deploy/prometheus/rules_test.yml
