#!/bin/sh
# Makes sure that a Docker engine answers.
#
#   sh engine.sh [ensure]   installs (Debian, Ubuntu; as root) and starts one when none answers; DOCKER_HOST is respected
#   sh engine.sh ping       exit code 0 when one answers, and nothing else
#   sh engine.sh stop       stops the engine that this script started, and no other
set -eu
umask 022

run_folder=/run/kernel-server
pid_file=$run_folder/dockerd.pid
log_file=/var/log/kernel-server-dockerd.log
# A first start makes keys and networks; on a slow disk that takes a while.
start_timeout_seconds=60
stop_timeout_seconds=30

say() { echo "kernel-server: $*"; }

fail() {
    echo "kernel-server: $*" >&2
    exit 1
}

# The engine's API, GET /_ping, by whatever this machine has: the docker command, or python3 on the socket.
ping_engine() {
    if command -v docker >/dev/null; then
        timeout 5 docker version --format . >/dev/null 2>&1
        return
    fi
    case ${DOCKER_HOST:-unix:///var/run/docker.sock} in
    unix://*) ;;
    *) fail "DOCKER_HOST=$DOCKER_HOST is set, but there is no \`docker\` command to reach it with. Install it, or unset DOCKER_HOST." ;;
    esac
    python3 -I - "${DOCKER_HOST:-unix:///var/run/docker.sock}" 2>/dev/null <<'PYTHON'
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(5)
    connection.connect(sys.argv[1].removeprefix("unix://"))
    connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
    sys.exit(b" 200 " not in connection.recv(64))
PYTHON
}

is_debian() {
    [ -r /etc/os-release ] && command -v apt-get >/dev/null &&
        (. /etc/os-release && case " ${ID-} ${ID_LIKE-} " in *" debian "* | *" ubuntu "*) true ;; *) false ;; esac)
}

# What a person has to do where this script may not.
advise() {
    socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
    socket=${socket#unix://}
    if [ -n "${DOCKER_HOST-}" ]; then
        fail "the engine of DOCKER_HOST=$DOCKER_HOST does not answer. Start it, or unset DOCKER_HOST."
    elif [ -S "$socket" ] && ! [ -w "$socket" ]; then
        fail "you may not talk to the Docker engine at $socket. Join its group with" \
            "\`sudo usermod -aG docker \$USER\`, then log in again."
    elif command -v dockerd >/dev/null || [ -S "$socket" ]; then
        fail "Docker is installed, but its engine does not run. Start it with \`sudo systemctl start docker\`" \
            "(without systemd: \`sudo service docker start\`, or this command as root), or set DOCKER_HOST."
    fi
    fail "there is no Docker engine here. Install Docker (https://docs.docker.com/engine/install/)," \
        "join its group with \`sudo usermod -aG docker \$USER\` and log in again; or run this command as root on" \
        "Debian or Ubuntu, and it installs one; or set DOCKER_HOST to an engine elsewhere."
}

# One apt-get at a time among our scripts (`make setup` runs several at the same time); others are waited for.
apt() {
    verb=$1
    shift
    mkdir -p /run/kernel-server
    flock /run/kernel-server/apt.lock apt-get -q -y -o DPkg::Lock::Timeout=300 "$verb" --no-install-recommends "$@"
}

install_engine() {
    command -v dockerd >/dev/null && return
    say "installing Docker from the distribution's packages"
    export DEBIAN_FRONTEND=noninteractive
    apt update >/dev/null || say "apt-get update failed; trying with the package lists that are there"
    # docker-cli is a package of its own in newer releases, cgroupfs-mount serves machines without systemd.
    packages="docker.io iptables ca-certificates debootstrap debian-archive-keyring"
    for optional in docker-cli cgroupfs-mount; do
        if apt-cache show "$optional" >/dev/null 2>&1; then
            packages="$packages $optional"
        fi
    done
    # shellcheck disable=SC2086
    apt install $packages >"$run_folder/apt.log" 2>&1 || {
        tail -n 15 "$run_folder/apt.log" >&2
        fail "Docker could not be installed (the end of $run_folder/apt.log is above)."
    }
}

# Is the process of a pid file alive, and is it really the program? Numbers are used again after a reboot or a kill,
# and a killed process that nobody reaps keeps its name, but has no executable any more.
is_running() {
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && [ -e "/proc/$pid/exe" ] &&
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]
}

# Any engine of this machine, whoever started it; those inside of containers have a PID namespace of their own.
engine_runs() {
    for folder in /proc/[0-9]*; do
        if [ "$(cat "$folder/comm" 2>/dev/null)" = dockerd ] && [ -e "$folder/exe" ] &&
            [ "$(readlink "$folder/ns/pid")" = "$(readlink /proc/self/ns/pid)" ]; then
            return 0
        fi
    done
    return 1
}

# An engine that was killed leaves pid files and sockets behind. A new one refuses to start when the number in a pid
# file belongs to any living process, and waits for a containerd that is no more.
clear_leftovers() {
    for file in /var/run/docker.pid "$pid_file"; do
        is_running "$file" dockerd || rm -f "$file"
    done
    containerd=/var/run/docker/containerd
    for file in "$containerd/containerd.pid" "$containerd/docker-containerd.pid"; do
        is_running "$file" containerd || rm -f "$file"
    done
    # A containerd without its dockerd is taken over by the next one; a dead one's socket is in the way.
    if ! is_running "$containerd/containerd.pid" containerd; then
        rm -f "$containerd"/*.sock "$containerd"/*.sock.ttrpc
    fi
    rm -f /var/run/docker.sock
}

mount_cgroups() {
    if ! [ -e /sys/fs/cgroup/cgroup.controllers ] && ! [ -d /sys/fs/cgroup/memory ] &&
        command -v cgroupfs-mount >/dev/null; then
        cgroupfs-mount || say "the cgroups could not be mounted"
    fi
}

start_engine() {
    if [ -d /run/systemd/system ]; then
        say "starting Docker with systemd"
        systemctl start docker || fail "systemd could not start Docker; see \`journalctl -u docker\`."
        return
    fi
    # An engine that another program is just starting answers soon: two of them would fight over their folder.
    if engine_runs; then
        say "waiting for the Docker engine that is starting"
        return
    fi
    clear_leftovers
    mount_cgroups
    say "starting the Docker engine (log: $log_file)"
    # Its own session, and none of our descriptors: it outlives this script, and nobody waits for its output to end.
    setsid -f dockerd --pidfile "$pid_file" </dev/null >"$log_file" 2>&1 9>&-
}

wait_for_engine() {
    waited=0
    until ping_engine; do
        # tenths of a second
        if [ "$waited" -ge $((start_timeout_seconds * 10)) ]; then
            [ ! -e "$log_file" ] || tail -n 8 "$log_file" >&2
            fail "the Docker engine did not answer within $start_timeout_seconds s (its log: $log_file)."
        fi
        if [ "$waited" -ge 30 ] && [ -e "$log_file" ] && ! engine_runs; then
            tail -n 8 "$log_file" >&2
            fail "the Docker engine ended at once; the end of $log_file is above."
        fi
        sleep 0.2
        waited=$((waited + 2))
    done
    say "the Docker engine answers"
}

ensure() {
    ping_engine && return
    # Whatever DOCKER_HOST names is not ours to start.
    [ -z "${DOCKER_HOST-}" ] && [ "$(id -u)" = 0 ] || advise
    command -v dockerd >/dev/null || is_debian || advise
    mkdir -p "$run_folder"
    exec 9>"$run_folder/engine.lock"
    flock -w 600 9 || fail "another run has been starting the engine for 600 s."
    # It may have come up while we waited, and installing the package may start it.
    ping_engine && return
    install_engine
    ping_engine || start_engine
    wait_for_engine
}

stop() {
    is_running "$pid_file" dockerd || {
        say "no engine of ours is running"
        return
    }
    pid=$(cat "$pid_file")
    kill "$pid"
    timeout "$stop_timeout_seconds" tail --pid="$pid" -f /dev/null || fail "dockerd ($pid) did not end in $stop_timeout_seconds s."
    say "the Docker engine is stopped"
}

case ${1:-ensure} in
ensure) ensure ;;
ping) ping_engine ;;
stop) stop ;;
*) fail "usage: engine.sh [ensure|ping|stop]" ;;
esac
