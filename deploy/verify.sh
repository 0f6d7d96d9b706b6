#!/bin/sh
# Checks the Kubernetes manifests and the compose files without a cluster or an engine.
# A missing tool is a line, not a failure.
set -eu
cd "$(dirname "$0")"

# The validators bring the schemas with them, so these also fix what is checked against.
REQUIREMENTS="kubernetes-validate==1.37.0 check-jsonschema==0.39.0"
# The oldest version the manifests work on (preStop sleep), and the newest known one.
KUBERNETES_VERSIONS="1.30.0 1.37.0"
VENV=../target/deploy-verify

fail() {
    echo "deploy: $1" >&2
    exit 1
}

skip() {
    echo "deploy: SKIPPED $1"
}

# Runs a tool that must exit 0, and shows what it said only when it did not.
quietly() {
    what=$1
    shift
    "$@" >"$scratch/output" 2>&1 && return 0
    cat "$scratch/output" >&2
    fail "$what failed (above)"
}

# Makes the virtual environment once for each set of requirements.
validators_installed() {
    [ "$(cat "$VENV/installed" 2>/dev/null)" = "$REQUIREMENTS" ] && return 0
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        skip "the validation against schemas: python3 with venv is not installed"
        return 1
    fi
    rm -rf "$VENV"
    mkdir -p "$(dirname "$VENV")"
    # shellcheck disable=SC2086 # a list of words
    if ! python3 -m venv "$VENV" >"$scratch/output" 2>&1 ||
        ! "$VENV/bin/pip" install --quiet --disable-pip-version-check --retries 1 \
            $REQUIREMENTS >>"$scratch/output" 2>&1; then
        skip "the validation against schemas: pip can't install $REQUIREMENTS ($(tail -n 1 "$scratch/output"))"
        return 1
    fi
    echo "$REQUIREMENTS" >"$VENV/installed"
}

verify_compose_schema() {
    for file in compose*.yml; do
        quietly "the compose schema on $file" \
            "$VENV/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$file"
        echo "deploy: $file: valid against the compose schema"
    done
}

# Resolves one set of compose files as compose itself does.
compose_resolves() {
    quietly "docker compose config $*" docker compose --env-file /dev/null "$@" config --quiet
    echo "deploy: docker compose config $*: resolves"
}

verify_compose_config() {
    if ! docker compose version >/dev/null 2>&1; then
        skip "docker compose config: docker with its compose plugin is not installed"
        return 0
    fi
    unset JWT_SECRET DB_PASSWORD
    compose_resolves --file compose.yml
    compose_resolves --file compose.test.yml
    production="--file compose.yml --file compose.production.yml"
    # shellcheck disable=SC2086 # a list of words
    if docker compose --env-file /dev/null $production config --quiet 2>"$scratch/output" ||
        ! grep -q 'required variable' "$scratch/output"; then
        fail "compose.production.yml does not ask for its secrets"
    fi
    export JWT_SECRET=set DB_PASSWORD=set
    # shellcheck disable=SC2086 # a list of words
    compose_resolves $production
}

# Renders one kustomization; a warning of kustomize counts as a failure.
render() {
    kubectl kustomize "k8s/$1" >"$2" 2>"$scratch/output" && [ ! -s "$scratch/output" ] && return 0
    cat "$scratch/output" >&2
    fail "kubectl kustomize k8s/$1 failed (above)"
}

verify_kustomization() {
    rendered=$scratch/rendered.yaml
    render "$1" "$rendered"
    if [ "$validators" = no ]; then
        echo "deploy: k8s/$1: renders"
        return 0
    fi
    for version in $KUBERNETES_VERSIONS; do
        quietly "kubernetes-validate of k8s/$1 for $version" \
            "$VENV/bin/kubernetes-validate" --quiet --strict -k "$version" "$rendered"
    done
    echo "deploy: k8s/$1: renders, valid for Kubernetes $KUBERNETES_VERSIONS"
}

verify_kubernetes() {
    if ! command -v kubectl >/dev/null 2>&1; then
        skip "the Kubernetes manifests: kubectl is not installed"
        return 0
    fi
    verify_kustomization base
    for overlay in k8s/overlays/*/; do
        verify_kustomization "overlays/$(basename "$overlay")"
    done
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 1' INT TERM
validators=no
if validators_installed; then
    validators=yes
    verify_compose_schema
fi
verify_compose_config
verify_kubernetes
