#!/bin/sh
# Makes a base image of Debian 13 (Python 3.13) from Debian packages, for machines that reach a Debian mirror but no
# image registry. Needs root, debootstrap (installed when apt-get is there) and a Docker engine.
#
#   sh make-base.sh [TAG]          default: kernel-server-base:trixie
#
# PY_EXEC_CA_BUNDLE (else PIP_CERT, REQUESTS_CA_BUNDLE, SSL_CERT_FILE) names a PEM file with authorities that the
# image is to trust. DEBIAN_MIRROR names another mirror. Does nothing when the image is already there.
set -eu
umask 022

tag=${1:-kernel-server-base:trixie}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
# Not in /tmp: there another user could plant a link for root to write through.
lock_folder=/run/kernel-server
# Two runs at once would do the work twice, and fight over apt's lock.
lock_timeout_seconds=900

fail() {
    echo "kernel-server: $*" >&2
    exit 1
}

say() { echo "kernel-server: $*"; }

check() {
    [ "$(id -u)" = 0 ] || fail "making a base image needs root: run \`sudo sh $0\`," \
        "or get one with \`docker pull python:3.13-slim\` where a registry can be reached."
    command -v docker >/dev/null || fail "the \`docker\` command is missing (Debian: apt-get install docker.io docker-cli)."
    docker version >/dev/null 2>&1 || fail "no Docker engine answers. Start it first, e.g. \`make engine\` or" \
        "\`systemctl start docker\`."
}

# One apt-get at a time among our scripts (`make setup` runs several at the same time); others are waited for.
apt() {
    verb=$1
    shift
    mkdir -p /run/kernel-server
    flock /run/kernel-server/apt.lock apt-get -q -y -o DPkg::Lock::Timeout=300 "$verb" --no-install-recommends "$@"
}

install_debootstrap() {
    command -v debootstrap >/dev/null && return
    command -v apt-get >/dev/null || fail "debootstrap is missing, and there is no apt-get to install it with."
    say "installing debootstrap"
    export DEBIAN_FRONTEND=noninteractive
    apt update || true
    # Ubuntu's debootstrap comes without Debian's keys.
    apt install debootstrap debian-archive-keyring ||
        fail "debootstrap cannot be installed (see above)."
}

# debootstrap knows a release by a script of its name; those of all Debian releases are the same.
release_script() {
    if [ -e /usr/share/debootstrap/scripts/trixie ]; then
        return
    fi
    echo /usr/share/debootstrap/scripts/sid
}

# Adds the authorities of a bundle that Debian does not know already, one file each, as update-ca-certificates wants.
trust() {
    chroot "$2" python3 -I -c '
import pathlib, re, sys
find = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)
known = {"".join(pem.split()) for pem in find.findall(pathlib.Path("/etc/ssl/certs/ca-certificates.crt").read_text())}
new = [pem for pem in find.findall(sys.stdin.read()) if "".join(pem.split()) not in known]
for number, pem in enumerate(new):
    pathlib.Path(f"/usr/local/share/ca-certificates/kernel-server-{number}.crt").write_text(pem + "\n")
' <"$1" && chroot "$2" update-ca-certificates >/dev/null 2>&1 || fail "the CA bundle $1 cannot be used."
}

# What a container never reads. Copyright files stay: licences ask for them.
shrink() {
    chroot "$1" apt-get clean
    rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/debconf/*-old "$1"/var/log/* \
        "$1"/usr/share/man/* "$1"/usr/share/info/* "$1"/usr/share/locale/* "$1"/tmp/* "$1"/debootstrap
    find "$1/usr/share/doc" -type f ! -name copyright -delete
    # Mount points that debootstrap may have filled.
    rm -f "$1"/etc/hostname "$1"/etc/resolv.conf
}

main() {
    if docker image inspect "$tag" >/dev/null 2>&1; then
        say "$tag is already there"
        return
    fi
    install_debootstrap
    folder=$(mktemp -d "${TMPDIR:-/tmp}/kernel-server-base.XXXXXX")
    # debootstrap leaves /proc mounted when it is killed; rm must not walk into that.
    trap 'umount "$folder/proc" "$folder/sys" 2>/dev/null || true; rm -rf --one-file-system "$folder"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    say "fetching Debian packages (about a minute)"
    # shellcheck disable=SC2046  # an empty answer is no argument
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates trixie "$folder" "$mirror" \
        $(release_script) >"$folder.log" 2>&1 || {
        tail -n 5 "$folder.log" >&2
        rm -f "$folder.log"
        fail "debootstrap failed (see above). Check that $mirror can be reached, or set DEBIAN_MIRROR."
    }
    rm -f "$folder.log"
    bundle=${PY_EXEC_CA_BUNDLE:-${PIP_CERT:-${REQUESTS_CA_BUNDLE:-${SSL_CERT_FILE:-}}}}
    if [ -n "$bundle" ] && [ -f "$bundle" ]; then
        trust "$bundle" "$folder"
    fi
    shrink "$folder"

    say "importing the base image"
    tar -C "$folder" --numeric-owner --one-file-system -c . |
        docker import \
            --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
            --change 'ENV LANG=C.UTF-8' \
            --change 'CMD ["python3"]' \
            - "$tag" >/dev/null || fail "the engine could not import the base image."
    say "$tag is ready"
}

check
mkdir -p "$lock_folder"
exec 9>"$lock_folder/make-base.lock"
flock -w "$lock_timeout_seconds" 9 || fail "another run has been making the base image for $lock_timeout_seconds s."
main
