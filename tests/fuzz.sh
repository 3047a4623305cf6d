#!/usr/bin/env bash
# fuzz.sh [TARGET...]: runs each fuzz target for FUZZ_SECONDS (60) and fails at the first finding.
#
# What the fuzzer comes upon is kept in .cache/fuzz and goes on from there; fuzz/corpus holds the seeds only. Installs
# cargo-fuzz and a nightly toolchain, which it needs for its sanitizer, where they are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${FUZZ_SECONDS:-60}

cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
cargo +nightly --version >/dev/null 2>&1 || rustup toolchain install nightly --profile minimal

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo +nightly fuzz list)
cargo +nightly fuzz build
for target in "${targets[@]}"; do
  found=.cache/fuzz/$target
  mkdir -p "$found"
  echo "fuzzing $target for $seconds s"
  if ! cargo +nightly fuzz run "$target" "$found" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 >"$found.log" 2>&1; then
    tail -n 60 "$found.log" >&2
    echo "fuzz.sh: a finding in $target; the input is in fuzz/artifacts/$target" >&2
    exit 1
  fi
  grep -E '^(Done|stat::)' "$found.log" || tail -n 1 "$found.log"
done
