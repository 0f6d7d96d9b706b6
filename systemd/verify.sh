#!/bin/sh
# Checks the units, the user and the directories as they will be installed: nothing
# on this host is changed, and a missing tool is a line, not a failure.
set -eu
cd "$(dirname "$0")"
# At this level the tools report warnings and errors only, not what they do.
export LC_ALL=C SYSTEMD_LOG_LEVEL=notice

# systemd-analyze counts exposure in tenths here: 25 is 2.5.
MAX_EXPOSURE_TENTHS=25

fail() {
    echo "systemd: $1" >&2
    exit 1
}

# Runs a tool that must exit 0 and stay silent on stderr: systemd only warns about an
# unknown key, and then runs without that setting.
silently() {
    what=$1
    shift
    status=0
    "$@" >"$root/stdout" 2>"$root/stderr" || status=$?
    if [ "$status" -ne 0 ] || [ -s "$root/stderr" ]; then
        cat "$root/stdout" "$root/stderr" >&2
        fail "$what: exit status $status, or something on stderr (above)"
    fi
}

has() {
    command -v "$1" >/dev/null 2>&1 && return 0
    echo "systemd: SKIPPED $2: $1 is not installed"
    return 1
}

# An empty root with what the units lean on, so that neither this host's own units
# nor the absence of our binaries adds noise.
install_into_root() {
    mkdir -p "$root/usr/lib/systemd/system" "$root/usr/lib/sysusers.d" \
        "$root/usr/lib/tmpfiles.d" "$root/usr/bin" "$root/bin" "$root/etc" "$root/var/lib"
    cp ./*.service ./*.target "$root/usr/lib/systemd/system/"
    cp holdfast.sysusers "$root/usr/lib/sysusers.d/holdfast.conf"
    cp holdfast.tmpfiles "$root/usr/lib/tmpfiles.d/holdfast.conf"
    for target in sysinit basic network shutdown multi-user; do
        printf '[Unit]\nDescription=stand-in\n' >"$root/usr/lib/systemd/system/$target.target"
    done
    for program in usr/bin/holdfast-api usr/bin/syncd bin/kill; do
        printf '#!/bin/sh\n' >"$root/$program"
        chmod 755 "$root/$program"
    done
}

sandbox_of() {
    sed -n '/^# --- Sandbox/,/^# --- End/p' "$1"
}

verify_sandboxes_agree() {
    sandbox_of holdfast-api.service >"$root/sandbox"
    [ -s "$root/sandbox" ] || fail "holdfast-api.service has no sandbox section"
    for unit in *.service; do
        sandbox_of "$unit" | cmp -s - "$root/sandbox" ||
            fail "the sandbox of $unit differs from that of holdfast-api.service"
    done
    echo "systemd: the sandboxes of all units agree"
}

verify_units() {
    silently "systemd-analyze verify" \
        systemd-analyze --root="$root" --man=no verify ./*.service ./*.target
    echo "systemd: units verified, nothing on stderr"
    for unit in *.service; do
        silently "systemd-analyze security $unit" \
            systemd-analyze --offline=true --no-pager --threshold="$MAX_EXPOSURE_TENTHS" \
            security "$root/usr/lib/systemd/system/$unit"
        echo "systemd: $unit: $(sed -n 's/.*exposure level for .*: \([0-9.]*\).*/exposure \1/p' "$root/stdout")"
    done
}

verify_user() {
    silently "systemd-sysusers" systemd-sysusers --root="$root"
    grep -q '^holdfast:' "$root/etc/passwd" || fail "sysusers made no user holdfast"
    echo "systemd: sysusers makes the user holdfast"
}

verify_directories() {
    if [ "$(id -u)" -ne 0 ]; then
        echo "systemd: SKIPPED tmpfiles: needs root to give directories to holdfast"
        return 0
    fi
    silently "systemd-tmpfiles" systemd-tmpfiles --root="$root" --create holdfast.conf
    uid=$(awk -F: '$1 == "holdfast" { print $3 }' "$root/etc/passwd")
    gid=$(awk -F: '$1 == "holdfast" { print $3 }' "$root/etc/group")
    [ "$(stat -c '%a %u %g' "$root/etc/holdfast")" = "750 0 $gid" ] ||
        fail "tmpfiles gave /etc/holdfast another mode or owner"
    [ "$(stat -c '%a %u %g' "$root/var/lib/holdfast")" = "700 $uid $gid" ] ||
        fail "tmpfiles gave /var/lib/holdfast another mode or owner"
    echo "systemd: tmpfiles makes /etc/holdfast and /var/lib/holdfast"
}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
trap 'exit 1' INT TERM
install_into_root
verify_sandboxes_agree
if has systemd-analyze "the units"; then verify_units; fi
if has systemd-sysusers "the user and directories"; then
    verify_user
    if has systemd-tmpfiles "the directories"; then verify_directories; fi
fi
