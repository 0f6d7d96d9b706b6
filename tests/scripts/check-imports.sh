#!/usr/bin/env bash
# Keeps the layers apart: who may import whom is checked by name, file by file.
# Also that every Rust file begins with `//!` and stays readable in length.
# Prints file:line and the broken rule; exits 1 when there is any.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly MOST_LINES=600
broken=0

report() {
    printf '%s\n' "$1"
    broken=1
}

# Prints "file:line: text" of the code, without comments, and with an import
# that spans lines joined into one, so that a plain pattern can find its parts.
code_of() {
    awk '
        { text = $0; sub(/^[ \t]*\/\/.*/, "", text) }
        joined != "" { joined = joined " " text }
        joined == "" && text ~ /^[ \t]*(pub(\([a-z]+\))? )?use / { joined = text; start = FNR }
        joined != "" {
            if (joined ~ /;/) { print FILENAME ":" start ": " joined; joined = "" }
            next
        }
        text != "" { print FILENAME ":" FNR ": " text }
    ' "$@"
}

rust_files() {
    local path
    for path in "$@"; do
        if [[ -e $path ]]; then find "$path" -name '*.rs' -type f; fi
    done | sort
}

# forbid RULE PATTERN PATH…: no code in the files of PATH may match PATTERN.
forbid() {
    local rule=$1 pattern=$2 file hit
    shift 2
    for file in $(rust_files "$@"); do
        while IFS= read -r hit; do
            report "$(printf '%s' "$hit" | sed -E 's/^([^:]+:[0-9]+): .*/\1/'): $rule"
        done < <(code_of "$file" | grep -E -- "$pattern" || true)
    done
}

# The same, for the files of PATH that EXCEPTION (a pattern) doesn't match.
forbid_outside() {
    local exception=$1 rule=$2 pattern=$3 file
    shift 3
    for file in $(rust_files "$@"); do
        if [[ ! $file =~ $exception ]]; then forbid "$rule" "$pattern" "$file"; fi
    done
}

# A path that begins at the crate's root or the shared crate's, alone or within
# the braces of an import.
within() {
    printf '\\b(crate|holdfast_shared)::(\\{([^;]*[^a-z_:])?)?(%s)\\b' "$1"
}

shared=shared/src
api=api/src
syncd=syncd/src

forbid 'domain imports none of the other modules' \
    "$(within 'store|buffer|repository|health|config|telemetry|clock')" $shared/domain
forbid 'domain does no I/O and is not async' \
    '\b(sqlx|redb|redis|tokio|warp|hyper)::|\basync fn\b|\bstd::(fs|net|process)\b' $shared/domain
forbid 'a store imports neither the buffer nor the repository' \
    "$(within 'buffer|repository')" $shared/store
forbid 'the buffer imports neither a store nor the repository' \
    "$(within 'store|repository')" $shared/buffer
forbid 'settings and telemetry import no store, buffer or repository' \
    "$(within 'store|buffer|repository')" $shared/config $shared/config.rs $shared/telemetry $shared/telemetry.rs

# Settings parse into the drivers' own options, and that is all they may do.
forbid_outside "^$shared/(store/postgres|config)" 'SQL lives in shared/src/store/postgres only' \
    '\bsqlx::' $shared $api $syncd
forbid 'settings hold connection options, no SQL' \
    '\bsqlx::(query|raw_sql|migrate|QueryBuilder|Executor|Connection)|\bquery(_as|_scalar)?!' $shared/config
forbid_outside "^$shared/buffer" 'redb is used in shared/src/buffer only' \
    '\bredb::' $shared $api $syncd
forbid_outside "^$shared/store/redis" 'Redis is used in shared/src/store/redis only' \
    '\bdeadpool_redis::' $shared $api $syncd

# main → router → handler → usecase → repository → store, buffer → domain: a
# layer imports from those to its right, but only the repository a store.
forbid 'the choice of a store is the repository'"'"'s' \
    "$(within 'store|buffer')" $api/handler $api/usecase $api/middleware $api/router.rs $api/transport $api/openapi $api/pages
forbid 'writes go through a usecase' '\brepository\.write\(' $api/handler $api/router.rs $api/middleware
forbid 'a handler knows no router' "$(within 'router')" $api/handler
forbid 'a usecase knows nothing of HTTP' \
    "$(within 'handler|router|middleware|transport')|\\b(warp|http|hyper|tower|tower_http)::" $api/usecase
forbid 'middleware stands before the handlers and imports neither them nor usecases' \
    "$(within 'handler|usecase|router')" $api/middleware
forbid 'transport only translates' \
    "$(within 'handler|usecase|router|middleware')" $api/transport
forbid 'a description answers nothing' \
    "$(within 'handler|usecase|router|middleware')" $api/openapi $api/pages
forbid 'the two programs share only the shared crate' '\bsyncd::' $api
forbid 'the two programs share only the shared crate' '\bholdfast_api::' $syncd
forbid 'the shared crate knows neither program' '\b(holdfast_api|syncd)::' $shared

for file in $(rust_files shared api syncd tests); do
    if [[ $(head -c 3 "$file") != '//!' ]]; then
        report "$file:1: begins with //! and why it exists"
    fi
    lines=$(wc -l <"$file")
    if [[ $file != tests/tests/* && $file != */tests.rs && $file != */tests/*.rs ]] && ((lines > MOST_LINES)); then
        report "$file:$lines: is longer than $MOST_LINES lines"
    fi
done

exit "$broken"
