# shellcheck shell=bash disable=SC2016,SC2154
# (What stands in single quotes is expanded by apt-get and by the hooks' own shell; $work is check.sh's.)
# A Docker engine of our own for machines that have none: root on Debian, and nothing of it stays behind.
# Sourced by check.sh, which defines say, fail and $work.
#
# The engine runs twice on the same data. To build, in the machine's own network, without a bridge: package
# indexes are reached as pip and apt reach them here. To run, in a network namespace with bridge, firewall and
# name server, as compose expects them: no port, route or rule of the machine is touched.

docker=docker
build_options=()
inside=() # what a command must be prefixed with to reach published ports

find_engine() {
    if docker info >/dev/null 2>&1; then
        say "engine: the one that runs here"
        return
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "no Docker engine answers, and starting one needs root on Debian"
    fi
    say "no Docker engine answers: installing one"
    apt-get update -q
    apt-get install -q -y --no-install-recommends --no-upgrade \
        docker.io iptables iproute2 procps mmdebstrap curl python3-venv
    docker=/usr/bin/docker # another client may come first in PATH
    if "$docker" info >/dev/null 2>&1; then
        say "engine: the one that Debian has started"
        return
    fi
    say "engine: one of our own in $work/engine"
    export DOCKER_HOST="unix://$work/engine/socket"
    build_options+=(--network host)
    own_engine --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
}

# The base image when no registry can be reached: Debian's Python laid out like the official image. Where TLS is
# intercepted the machine's certificates are the ones that pip needs.
stand_in_base() {
    local mirror suite
    command -v mmdebstrap >/dev/null || fail "the base image cannot be pulled, and there is no mmdebstrap to make one"
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' 'Created-By: Packages' \
        | awk -v suite="$suite" '$1 == suite { found = $2 } END { print found }')
    say "base image: no registry can be reached, so a stand-in from Debian's packages ($suite)"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv,netbase,tzdata \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='cp /etc/ssl/certs/ca-certificates.crt "$1/etc/ssl/certs/"' \
        --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
        --customize-hook='for name in python python3; do ln -s /usr/bin/python3 "$1/usr/local/bin/$name"; done' \
        --customize-hook='ln -s /usr/bin/pip3 "$1/usr/local/bin/pip"' \
        --customize-hook='printf "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n" >"$1/etc/pip.conf"' \
        "$suite" "$work/base.tar" "$mirror"
    "$docker" import -c 'ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' "$work/base.tar" "$1" >/dev/null
    rm "$work/base.tar"
}

network_for_containers() {
    [ -d "$work/engine" ] || return 0
    stop_own_engine
    ip netns add "bisenet-$$"
    inside=(nsenter "--net=/run/netns/bisenet-$$") # not `ip netns exec`: it hides the cgroups from the engine
    "${inside[@]}" ip link set lo up
    "${inside[@]}" sysctl -qw net.ipv4.ip_forward=1
    own_engine --bip 172.31.0.1/24 --default-address-pool base=172.31.64.0/18,size=24
}

own_engine() {
    local folder=$work/engine
    mkdir -p "$folder"
    setsid "${inside[@]}" dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/pid" \
        --host "$DOCKER_HOST" --storage-driver overlay2 "$@" >>"$folder/log" 2>&1 </dev/null &
    for _ in $(seq 150); do
        ! "$docker" info >/dev/null 2>&1 || return 0
        sleep 0.2
    done
    tail -n 5 "$folder/log"
    fail "the engine does not start"
}

stop_own_engine() {
    [ ! -f "$work/engine/pid" ] || kill "$(cat "$work/engine/pid")"
    for _ in $(seq 150); do
        [ -f "$work/engine/pid" ] || return 0
        sleep 0.2
    done
    fail "the engine does not stop"
}

remove_own_engine() {
    [ -d "$work/engine" ] || return 0
    stop_own_engine
    # A container in the machine's network leaves the mount of its namespace behind.
    awk -v below="$work/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r umount
    ip netns del "bisenet-$$" 2>/dev/null || true
}
