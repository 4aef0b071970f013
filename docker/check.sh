#!/usr/bin/env bash
# Build the image, and see for real that it does what it promises.
#
#   docker/check.sh images     build it; it stays in the engine that runs here, if one does
#   docker/check.sh sbom       build it, list what is in it as build/sbom.spdx.json
#   docker/check.sh compose    build it, bring docker-compose.yml up, segment a picture, take it down again
#
# Needs a running Docker engine, or root on Debian (see engine.sh). What had to be left out is said.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

work=$(mktemp -d)
image=bisenet:cpu
url=http://127.0.0.1:${BISENET_PORT:-8000}
pod=bisenet-check-pod
export DOCKER_BUILDKIT=1
# shellcheck source=docker/engine.sh
. docker/engine.sh

main() {
    trap clean_up EXIT
    case "${1:-}" in
        images | sbom | compose) ;;
        *) fail "usage: docker/check.sh images|sbom|compose" ;;
    esac
    build
    case "$1" in
        sbom) list_contents ;;
        compose)
            look_at_files
            bring_up
            ;;
    esac
}

build() {
    find_engine
    local base version revision
    base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    if ! "$docker" image inspect "$base" >/dev/null 2>&1 && ! timeout 60 "$docker" pull -q "$base" 2>/dev/null; then
        base=bisenet-stand-in:python
        stand_in_base "$base"
    fi
    say "building $image on $base"
    "$docker" build "${build_options[@]}" --build-arg PYTHON_IMAGE="$base" --build-arg VERSION="$version" \
        --build-arg REVISION="$revision" --target cpu -t "$image" -f docker/Dockerfile .
    say "$image: $(($("$docker" image inspect -f '{{.Size}}' "$image") / 1000000)) MB," \
        "of them $base $(($("$docker" image inspect -f '{{.Size}}' "$base") / 1000000)) MB"
}

install_tools() {
    python3 -m venv "$work/tools"
    "$work/tools/bin/pip" install -q --disable-pip-version-check -r docker/tools.txt
}

# A list, and no more: whether any of it is known to be vulnerable is not looked up.
list_contents() {
    install_tools
    "$docker" save -o "$work/image.tar" "$image"
    mkdir -p build
    "$work/tools/bin/syft" -q "docker-archive:$work/image.tar" -o spdx-json >build/sbom.spdx.json
    say "build/sbom.spdx.json: $(python3 -c '
import json
print(len(json.load(open("build/sbom.spdx.json"))["packages"]), "packages")')"
}

look_at_files() {
    say "looking at docker/Dockerfile and docker-compose.yml"
    install_tools
    "$work/tools/bin/hadolint" docker/Dockerfile
    compose config -q
}

bring_up() {
    network_for_containers
    refuses_to_be_open_to_everybody
    has_no_torch
    make_photo
    starts_and_answers
    asks_for_a_key_once_there_is_one
    stops_cleanly
    runs_as_the_pod_does
    say "all of it works"
}

# Not the user's own .env: this is what a stranger gets.
compose() { "$work/tools/bin/docker-compose" --env-file /dev/null -p bisenet-check "$@"; }

run() { "$docker" run --rm --network none "$@"; }

curl_to() { "${inside[@]}" curl -sS --max-time 60 "$@"; }

status_of() { curl_to -o /dev/null -w '%{http_code}' "$@"; }

refuses_to_be_open_to_everybody() {
    say "without keys, and without being told to do without, it does not start"
    local code=0
    run "$image" || code=$?
    [ "$code" = 2 ] || fail "exit code $code instead of 2"
}

has_no_torch() {
    say "there is no torch, and the user is not root"
    run --entrypoint python "$image" -c '
import importlib.util, os
assert importlib.util.find_spec("torch") is None
assert os.getuid() == os.getgid() == 10001, os.getuid()'
}

make_photo() {
    run --entrypoint python "$image" -c '
import sys
from PIL import Image
Image.linear_gradient("L").resize((321, 203)).convert("RGB").save(sys.stdout.buffer, "JPEG")' >"$work/photo.jpg"
}

starts_and_answers() {
    say "docker compose up"
    compose up -d --no-build
    wait_until_ready "$url" "$(compose ps -q segmentation)"
    local baked kept
    baked=$(run --entrypoint find "$image" /var/lib/bisenet/cache -type f | sort)
    kept=$(compose exec -T segmentation find /var/lib/bisenet/cache -type f | sort)
    [ "$baked" = "$kept" ] || fail "the first start compiled again what the image holds:
$kept"
    say "curl --data-binary @photo.jpg $url/v1/segment -o mask.png"
    is_mask --data-binary @"$work/photo.jpg" "$url/v1/segment"
    compose up -d --no-build --wait # the image's own health check
    compose exec -T segmentation grep -E 'VmRSS|VmHWM|Threads' /proc/1/status
}

asks_for_a_key_once_there_is_one() {
    say "docker compose up, with BISENET_AUTH__KEYS; the volume is kept"
    BISENET_AUTH__KEYS=correct-horse compose up -d --no-build
    wait_until_ready "$url" "$(compose ps -q segmentation)"
    [ "$(status_of --data-binary @"$work/photo.jpg" "$url/v1/segment")" = 401 ] || fail "no key was asked for"
    is_mask -H 'Authorization: Bearer correct-horse' --data-binary @"$work/photo.jpg" "$url/v1/segment"
}

stops_cleanly() {
    say "docker compose stop"
    compose stop
    local code
    code=$("$docker" inspect -f '{{.State.ExitCode}}' "$(compose ps -aq segmentation)")
    [ "$code" = 0 ] || fail "exit code $code instead of 0"
}

runs_as_the_pod_does() {
    say "as k8s/base runs it: its configuration, a file of keys, nothing compiled"
    local port=$((${BISENET_PORT:-8000} + 1))
    printf 'battery-staple\n' >"$work/api-keys"
    chmod 0444 "$work/api-keys"
    "$docker" run -d --name "$pod" --read-only --cap-drop ALL --security-opt no-new-privileges --memory 3g \
        --user 10001:10001 --tmpfs /tmp --tmpfs /var/lib/bisenet:uid=10001,gid=10001 -p "127.0.0.1:$port:8000" \
        -v "$PWD/k8s/base/bisenet.toml:/etc/bisenet/bisenet.toml:ro" \
        -v "$work/api-keys:/run/secrets/bisenet/api-keys:ro" \
        "$image" serve --config /etc/bisenet/bisenet.toml >/dev/null
    wait_until_ready "http://127.0.0.1:$port" "$pod"
    is_mask -H 'Authorization: Bearer battery-staple' --data-binary @"$work/photo.jpg" "http://127.0.0.1:$port/v1/segment"
    "$docker" stop -t 30 "$pod" >/dev/null
    [ "$("$docker" inspect -f '{{.State.ExitCode}}' "$pod")" = 0 ] || fail "it does not stop cleanly"
}

wait_until_ready() {
    local started=$EPOCHREALTIME
    while [ "$(status_of "$1/readyz" 2>/dev/null)" != 200 ]; do
        [ "$("$docker" inspect -f '{{.State.Running}} {{.RestartCount}}' "$2")" = "true 0" ] || fail "it does not start"
        ((${EPOCHREALTIME/./} - ${started/./} < 180000000)) || fail "not ready after three minutes"
        sleep 0.1
    done
    printf 'ready after %d ms\n' $(((${EPOCHREALTIME/./} - ${started/./}) / 1000))
}

is_mask() {
    curl_to -f -o "$work/mask.png" "$@"
    python3 - "$work/mask.png" <<'PYTHON' || fail "the answer is no palette PNG of the photo's size"
import pathlib, struct, sys
head = pathlib.Path(sys.argv[1]).read_bytes()[:26]
raise SystemExit(head != b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBB", 13, b"IHDR", 321, 203, 8, 3))
PYTHON
}

clean_up() {
    local code=$?
    if [ "$code" != 0 ] && [ -x "$work/tools/bin/docker-compose" ]; then
        compose logs --tail 20 || true
        "$docker" logs --tail 20 "$pod" 2>&1 || true
    fi
    [ ! -x "$work/tools/bin/docker-compose" ] || compose down -v >/dev/null 2>&1 || true
    "$docker" rm -f -v "$pod" >/dev/null 2>&1 || true
    remove_own_engine
    rm -rf "$work"
    exit "$code"
}

main "$@"
