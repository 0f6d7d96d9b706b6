#!/usr/bin/env bash
# Installs what the tests, the demo and the benchmark need beyond Rust: a C
# compiler, PostgreSQL, PgBouncer and Redis as programs, curl, jq, libfaketime,
# for root what cuts the power of a file system, and under target a newer
# PgBouncer and an environment with what tests the API by its description. Says
# what it does, changes nothing where all is there, and neither creates a cluster
# nor starts a service: the tests run private instances of their own.
#
# Exit codes: 0 all is there, 69 something is missing that can't be installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly UNAVAILABLE=69
readonly PYTHON="${CARGO_TARGET_DIR:-target}/python"
readonly PYTHON_NEEDS=tests/api/requirements.txt
readonly CREATE_NO_CLUSTER=/etc/postgresql-common/createcluster.d/holdfast-tests.conf

say() { printf 'install: %s\n' "$*"; }

fail() {
    printf 'install: %s\n' "$*" >&2
    exit "$UNAVAILABLE"
}

# PostgreSQL 15 or later, where Debian puts it or on the PATH.
has_postgres() {
    local initdb version
    for initdb in /usr/lib/postgresql/*/bin/initdb "$(command -v initdb || true)"; do
        [[ -x $initdb && -x ${initdb%initdb}postgres ]] || continue
        version=$("${initdb%initdb}postgres" --version | grep -oE '[0-9]+' | head -n 1)
        if ((version >= 15)); then return 0; fi
    done
    return 1
}

missing_packages() {
    has_postgres || postgres_package
    command -v redis-server >/dev/null || echo redis-server
    command -v redis-cli >/dev/null || echo redis-tools
    [[ -x /usr/sbin/pgbouncer ]] || echo pgbouncer
    command -v make >/dev/null || echo make
    # What the API's guide is typed with.
    command -v curl >/dev/null || echo curl
    command -v jq >/dev/null || echo jq
    command -v cc >/dev/null || echo gcc libc6-dev
    has_python || echo python3 python3-venv
    missing_for_power_cuts
}

# Only root can cut a file system's power; without these the tests say that they leave it out.
missing_for_power_cuts() {
    ((EUID == 0)) && command -v apt-get >/dev/null || return 0
    [[ -x /usr/sbin/xfs_io ]] || echo xfsprogs
    compgen -G '/usr/lib/*/libeatmydata.so' >/dev/null || echo libeatmydata1
}

# Debian 12 has 15; later ones have only their own version, all of which will do.
postgres_package() {
    if [[ -n $(apt-cache policy postgresql-15 2>/dev/null) ]]; then
        echo postgresql-15
    else
        echo postgresql
    fi
}

# What gives a process another wall clock, for tests/tests/clocks.rs.
has_faketime() {
    compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null
}

install_under_target() {
    tests/scripts/newer-pgbouncer.sh
    install_python_programs
}

# What the tests go on without, saying so.
install_optional() {
    if has_faketime; then return 0; fi
    if may_install && as_root apt-get -qq update &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -qq \
            install -y --no-install-recommends libfaketime >/dev/null; then
        say "installed libfaketime"
    else
        say "libfaketime can't be installed: clocks that disagree will not be tested"
    fi
}

# Python with what makes environments, which Debian has in a package of its own.
has_python() {
    python3 -c 'import ensurepip, venv' 2>/dev/null
}

# The list the environment was made by lies in it, so that a changed one makes it anew.
install_python_programs() {
    if cmp -s "$PYTHON_NEEDS" "$PYTHON/made-by.txt"; then return 0; fi
    say "installing what $PYTHON_NEEDS lists into $PYTHON"
    rm -rf "$PYTHON"
    python3 -m venv "$PYTHON" || fail "python3 could not make an environment"
    "$PYTHON/bin/pip" install --quiet --disable-pip-version-check --timeout 60 --retries 10 \
        --no-deps -r "$PYTHON_NEEDS" ||
        fail "pip could not install what $PYTHON_NEEDS lists"
    cp "$PYTHON_NEEDS" "$PYTHON/made-by.txt"
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    ((EUID == 0)) || { command -v sudo >/dev/null && sudo -n true 2>/dev/null; }
}

# The services of packages that this script installs are not to run, now or after
# a restart; those that were here before are none of its business.
new_services() {
    [[ -d /run/systemd/system ]] || return 0
    [[ " $* " != *' redis-server '* ]] || echo redis-server.service
    [[ " $* " != *' pgbouncer '* ]] || echo pgbouncer.service
}

hold_back_services() {
    local service
    as_root mkdir -p "$(dirname "$CREATE_NO_CLUSTER")"
    echo 'create_main_cluster = false' | as_root tee "$CREATE_NO_CLUSTER" >/dev/null
    for service in $(new_services "$@"); do
        as_root systemctl mask --runtime --quiet "$service"
    done
}

release_services() {
    local service
    as_root rm -f "$CREATE_NO_CLUSTER"
    for service in $(new_services "$@"); do
        as_root systemctl unmask --runtime --quiet "$service"
    done
}

install_packages() {
    local apt_get=(env DEBIAN_FRONTEND=noninteractive apt-get -o Dpkg::Use-Pty=0 -qq)
    # shellcheck disable=SC2064 # the packages of now are meant
    trap "release_services $*" EXIT
    hold_back_services "$@"
    as_root "${apt_get[@]}" install -y --no-install-recommends "$@" >/dev/null ||
        fail "apt-get could not install: $*"
    local service
    for service in $(new_services "$@"); do as_root systemctl disable --quiet "$service"; done
}

main() {
    command -v cargo >/dev/null ||
        fail "cargo is missing: install Rust 1.94 or later, see https://rustup.rs"
    local missing
    read -r -a missing <<<"$(missing_packages | xargs)"
    if ((${#missing[@]} == 0)); then
        install_under_target
        install_optional
        return 0
    fi
    may_install ||
        fail "please install these first (as root, or with sudo without a password, this script would): ${missing[*]}"
    # The lists may be missing altogether, and with them the right package names.
    say "refreshing the package lists"
    as_root apt-get -qq update || fail "apt-get could not refresh its lists"
    read -r -a missing <<<"$(missing_packages | xargs)"
    say "installing ${missing[*]}"
    install_packages "${missing[@]}"
    install_under_target
    install_optional
    say "done"
}

main
