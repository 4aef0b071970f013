#!/usr/bin/env bash
# Build the image, and see for real that it does what it promises.
#
#   docker/check.sh images     build it; it stays in the engine that runs here, if one does
#   docker/check.sh sbom       build it, list what is in it as build/sbom.spdx.json
#   docker/check.sh targets    build the images for GPUs and training as well, and start each
#   docker/check.sh compose    build it, bring docker-compose.yml up, segment a picture, take it down again; then
#                              the same with the whole stack, while it is broken piece by piece (needs root)
#
# Needs a running Docker engine, or root on Debian (see engine.sh). Images that cannot be pulled are replaced by
# stand-ins. What had to be left out is said.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s\n' "$*"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

work=$(mktemp -d)
image=bisenet:cpu
max_megabytes=700
url=http://127.0.0.1:${BISENET_PORT:-8000}
pod=bisenet-check-pod
base=
registry_answers=yes
without=
is_up=no
programs=${PROGRAMS:-.venv/bin} # python, hadolint and docker-compose of the extra [dev]
export DOCKER_BUILDKIT=1
# shellcheck source=docker/engine.sh
. docker/engine.sh

main() {
    trap clean_up EXIT
    case "${1:-}" in
        images | sbom | targets | compose) ;;
        *) fail "usage: docker/check.sh images|sbom|targets|compose" ;;
    esac
    find_engine
    choose_base
    build cpu
    is_small_enough
    case "$1" in
        sbom) list_contents ;;
        targets) build_and_start_targets ;;
        compose)
            look_at_files
            find_images_of_others
            network_for_containers
            bring_up
            break_the_stack
            ;;
    esac
}

choose_base() {
    base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' docker/Dockerfile)
    if ! is_there "$base"; then
        base=bisenet-stand-in:python
        "$docker" image inspect "$base" >/dev/null 2>&1 || stand_in_base "$base"
    fi
}

# Where a registry does not answer once, it is not asked again.
is_there() {
    "$docker" image inspect "$1" >/dev/null 2>&1 && return
    [ "$registry_answers" = yes ] || return
    timeout 60 "$docker" pull -q "$1" 2>/dev/null && return
    registry_answers=no
    return 1
}

# build TARGET [OPTION...]: builds bisenet:TARGET
build() {
    local version revision target=$1
    shift
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
    revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    say "building bisenet:$target on $base"
    "$docker" build "${build_options[@]}" --build-arg PYTHON_IMAGE="$base" --build-arg VERSION="$version" \
        --build-arg REVISION="$revision" "$@" --target "$target" -t "bisenet:$target" -f docker/Dockerfile .
    say "bisenet:$target: $(megabytes "bisenet:$target") MB, of them $base $(megabytes "$base") MB"
}

megabytes() { echo $(($("$docker" image inspect -f '{{.Size}}' "$1") / 1000000)); }

is_small_enough() {
    [ "$(megabytes "$image")" -le "$max_megabytes" ] || fail "$image is larger than $max_megabytes MB"
}

# A list, and no more: whether any of it is known to be vulnerable is not looked up.
list_contents() {
    python3 -m venv "$work/tools"
    "$work/tools/bin/pip" install -q --disable-pip-version-check -r docker/tools.txt
    "$docker" save -o "$work/image.tar" "$image"
    mkdir -p build
    "$work/tools/bin/syft" -q "docker-archive:$work/image.tar" -o spdx-json >build/sbom.spdx.json
    say "build/sbom.spdx.json: $(python3 -c '
import json
print(len(json.load(open("build/sbom.spdx.json"))["packages"]), "packages")')"
}

look_at_files() {
    say "looking at docker/Dockerfile and docker-compose.yml"
    "$programs/hadolint" docker/Dockerfile tests/docker/stand_ins/Dockerfile
    compose config -q
}

bring_up() {
    refuses_to_be_open_to_everybody
    has_no_torch
    loads_every_library
    make_photo
    starts_and_answers
    asks_for_a_key_once_there_is_one
    stops_cleanly
    runs_as_the_pod_does
    say "the one container works"
}

# POSTGRES_IMAGE and so on are the variables of docker-compose.stack.yml. Grafana has no stand-in.
find_images_of_others() {
    local variable name
    while IFS=' ' read -r variable name; do
        if ! is_there "$name"; then
            name=${variable%_IMAGE}
            name=bisenet-stand-in:${name,,}
            if [ "$variable" = GRAFANA_IMAGE ]; then
                say "left out: Grafana cannot be pulled"
                without=grafana
                continue
            fi
            say "building $name"
            "$docker" build -q "${build_options[@]}" --build-arg PYTHON_IMAGE="$base" \
                --target "${name#*:}" -t "$name" tests/docker/stand_ins
        fi
        export "$variable=$name"
    done < <(sed -n 's/.*"${\([A-Z]*_IMAGE\):-\(.*\)}".*/\1 \2/p' docker-compose.stack.yml)
}

break_the_stack() {
    [ "$(id -u)" = 0 ] || fail "the stack is broken by root only: it kills processes of containers"
    say "docker compose -f docker-compose.yml -f docker-compose.stack.yml up"
    BISENET_STACK=on BISENET_WITHOUT=$without BISENET_DOCKER=$docker \
        "${inside[@]}" "$programs/python" -m pytest -m compose -s -v tests/docker/test_running_stack.py
    say "the stack works"
}

# Without CUDA and TensorRT, which only machines with a GPU can use.
build_and_start_targets() {
    build train --build-arg TORCH_INDEX="${TORCH_INDEX:-}"
    say "bisenet:train trains, and its network can be served"
    run --read-only --tmpfs /tmp --tmpfs /runs:uid=10001,gid=10001 --shm-size 1g --entrypoint sh bisenet:train -ec '
        bisenet dataset example example
        bisenet train custom --set data.dataset=example/example.toml --out first --finetune-from camvid \
            --set network.architecture=bisenetv1-lite --set "network.parameters={}" \
            --set "augment.crop=[96,128]" --set schedule.batch_size=4 --set schedule.steps=4
        ls first/artifact/manifest.json first/artifact/openvino/graph.xml'
    build gpu --build-arg TENSORRT=off --build-arg TORCH_INDEX="${TORCH_INDEX:-}"
    say "bisenet:gpu says why it runs on the CPU, and serves"
    "$docker" run -d --name "$pod" --network none --read-only --tmpfs /tmp -e BISENET_AUTH__ALLOW_ANONYMOUS=true \
        bisenet:gpu >/dev/null
    for _ in $(seq 300); do
        [ "$("$docker" inspect -f '{{.State.Health.Status}}' "$pod")" != healthy ] || break
        sleep 1
    done
    [ "$("$docker" inspect -f '{{.State.Health.Status}}' "$pod")" = healthy ] || fail "it does not become healthy"
    "$docker" logs "$pod" 2>&1 | grep 'GPU is not used' || fail "it does not say why it uses no GPU"
}

# Not the user's own .env: this is what a stranger gets.
compose() { "$programs/docker-compose" --env-file /dev/null -p bisenet-check "$@"; }

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

# A library that cannot be loaded for want of another one was not damaged by strip.
loads_every_library() {
    say "every library that was stripped can be loaded"
    run --entrypoint python "$image" -c '
import ctypes, pathlib, sysconfig
damaged = []
for file in pathlib.Path(sysconfig.get_path("purelib")).rglob("*.so*"):
    try:
        ctypes.CDLL(str(file))
    except OSError as error:
        damaged += [str(error)] if "ELF" in str(error) else []
raise SystemExit("\n".join(damaged) or 0)'
}

make_photo() {
    run --entrypoint python "$image" -c '
import sys
from PIL import Image
Image.linear_gradient("L").resize((321, 203)).convert("RGB").save(sys.stdout.buffer, "JPEG")' >"$work/photo.jpg"
}

starts_and_answers() {
    say "docker compose up"
    local began=$EPOCHREALTIME
    is_up=yes
    compose up -d --no-build
    wait_until_ready "$url" "$(compose ps -q segmentation)"
    say "curl --data-binary @photo.jpg $url/v1/segment -o mask.png"
    is_mask --data-binary @"$work/photo.jpg" "$url/v1/segment"
    printf 'first mask %d ms after docker compose up\n' $(((${EPOCHREALTIME/./} - ${began/./}) / 1000))
    local baked kept
    baked=$(run --entrypoint find "$image" /var/lib/bisenet/cache/{numba,choices} -type f | sort)
    kept=$(compose exec -T segmentation find /var/lib/bisenet/cache/{numba,choices} -type f | sort)
    [ "$baked" = "$kept" ] || fail "the first start compiled or timed again what the image holds:
$kept"
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
    if [ "$code" != 0 ] && [ "$is_up" = yes ]; then
        compose logs --tail 20 || true
        "$docker" logs --tail 20 "$pod" 2>&1 || true
    fi
    [ "$is_up" = no ] || compose down -v >/dev/null 2>&1 || true
    "$docker" rm -f -v "$pod" >/dev/null 2>&1 || true
    remove_own_engine
    rm -rf "$work"
    exit "$code"
}

main "$@"
