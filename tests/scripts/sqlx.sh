#!/usr/bin/env bash
# Regenerates what sqlx's macros know about each query (`sqlx.sh write`), or
# checks that the committed knowledge is fresh (`sqlx.sh check`). Does what
# `cargo sqlx prepare` does, without having to build that tool: the macros write
# one file per query into SQLX_OFFLINE_DIR while they talk to a real database.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly USAGE=64
mode=${1-}
if [[ $mode != write && $mode != check ]]; then
    echo 'usage: sqlx.sh write|check' >&2
    exit "$USAGE"
fi

fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

# A cfg that differs each time makes the macros run although nothing else has
# changed, and leaves the compiled library of ordinary builds as it is.
run_macros=(cargo rustc --quiet -p holdfast-shared --lib --profile check --
    --cfg "sqlx_run=\"$(date +%s%N)\"")

cargo build --quiet -p holdfast-tests --bin holdfast-postgres
SQLX_OFFLINE=false SQLX_OFFLINE_DIR=$fresh \
    "${CARGO_TARGET_DIR:-target}/debug/holdfast-postgres" migrations "${run_macros[@]}"

if [[ $mode == check ]]; then
    mkdir -p "$fresh.committed"
    trap 'rm -rf "$fresh" "$fresh.committed"' EXIT
    if [[ -d .sqlx ]]; then cp .sqlx/*.json "$fresh.committed/" 2>/dev/null || true; fi
    if ! diff -r "$fresh.committed" "$fresh"; then
        echo 'sqlx: .sqlx is not what the queries and migrations make of it; run "make sqlx" and commit it' >&2
        exit 1
    fi
    echo "sqlx: .sqlx is fresh ($(find "$fresh" -name '*.json' | wc -l) queries)"
    exit 0
fi

mkdir -p .sqlx
find .sqlx -name 'query-*.json' -delete
cp "$fresh"/*.json .sqlx/
echo "sqlx: wrote $(find .sqlx -name '*.json' | wc -l) queries to .sqlx"
