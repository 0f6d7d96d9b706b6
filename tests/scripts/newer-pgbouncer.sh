#!/usr/bin/env bash
# Puts a PgBouncer that keeps prepared statements (1.21 or later) beside the
# binaries where the system's is older, as on Debian 12: the next Debian's
# package, unpacked with the libraries it needs, not installed. Says what it does,
# and changes nothing where one is there.
#
# Exit codes: 0 one is there, 69 it can't be had.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly UNAVAILABLE=69
readonly NEXT_RELEASE=trixie
readonly PLACE=${CARGO_TARGET_DIR:-target}/pgbouncer
# What it needs of its own release: all libraries, down to libc, since a library
# and the libc it was built for go together.
readonly PACKAGES=(pgbouncer libaudit1 libc6 libcap-ng0 libcap2 libcares2 libevent-2.1-7t64 libpam0g
    libssl3t64 libsystemd0 libzstd1 zlib1g)

say() { printf 'install: %s\n' "$*"; }

fail() {
    printf 'install: %s\n' "$*" >&2
    exit "$UNAVAILABLE"
}

# Whether this program is a PgBouncer of 1.21 or later.
keeps_statements() {
    local version
    version=$("$1" --version 2>/dev/null | sed -nE 's/^PgBouncer 1\.([0-9]+).*/\1/p') || return 1
    [[ -n $version ]] && ((version >= 21))
}

# Where this system gets its own packages, without what is special to it.
archive() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' |
        grep -E '/debian/?$' | head -n 1
}

# apt with directories of its own, so that the system's lists stay as they are.
private_apt() {
    apt-get -qq -o Dir::State::Lists="$workshop/lists" -o Dir::Cache="$workshop/cache" \
        -o Dir::Etc::SourceList="$workshop/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o APT::Sandbox::User= -o Acquire::Languages=none "$@"
}

unpack() {
    local from=$1 package
    mkdir -p "$workshop"/{lists,cache,packages,pgbouncer/root}
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' \
        "$from" "$NEXT_RELEASE" >"$workshop/sources.list"
    private_apt update || return 1
    (cd "$workshop/packages" && private_apt download "${PACKAGES[@]}") || return 1
    for package in "$workshop"/packages/*.deb; do
        dpkg-deb --extract "$package" "$workshop/pgbouncer/root" || return 1
    done
    write_starter
}

# The program by its own loader and libraries.
write_starter() {
    cat >"$workshop/pgbouncer/pgbouncer" <<'STARTER'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu*)
exec "$libraries"/ld-linux*.so.* --library-path "$libraries" "$root/usr/sbin/pgbouncer" "$@"
STARTER
    chmod +x "$workshop/pgbouncer/pgbouncer"
}

main() {
    if keeps_statements /usr/sbin/pgbouncer || keeps_statements "$PLACE/pgbouncer"; then return 0; fi
    local from
    from=$(command -v apt-get >/dev/null && archive) ||
        fail "please install PgBouncer 1.21 or later"
    say "unpacking a newer PgBouncer into $PLACE"
    workshop=$(mktemp -d)
    trap 'rm -rf "$workshop"' EXIT
    unpack "$from" || fail "the newer PgBouncer can't be had from $from"
    keeps_statements "$workshop/pgbouncer/pgbouncer" || fail "the unpacked PgBouncer doesn't run here"
    rm -rf "$PLACE"
    mkdir -p "$(dirname "$PLACE")"
    mv "$workshop/pgbouncer" "$PLACE"
}

main
