#!/bin/sh
# Makes a virtual environment with this project and its tools in it: venv.sh FOLDER PYTHON
# uv does it in a third of pip's time; pip where uv has no build for the machine or cannot reach its index.
set -eu

folder=$1
python=$2

fail() {
    echo "kernel-server: $*" >&2
    exit 1
}

# Debian's python3 comes without ensurepip.
make_venv() {
    rm -rf "$folder"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_venv_package
    "$python" -m venv "$folder"
}

# One apt-get at a time among our scripts (the engine's set-up runs at the same time); others are waited for.
apt() {
    verb=$1
    shift
    mkdir -p /run/kernel-server
    flock /run/kernel-server/apt.lock apt-get -q -y -o DPkg::Lock::Timeout=300 "$verb" --no-install-recommends "$@"
}

install_venv_package() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        fail "$python cannot make virtual environments. Run \`sudo apt-get install python3-venv\` (or your" \
            "distribution's package of that kind), or choose another one: make PYTHON=/path/to/python3"
    echo "kernel-server: installing python3-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt update || true
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # The version's own package first: `python3` need not be the distribution's default one.
    apt install "python$version-venv" || apt install python3-venv
}

# uv reads neither pip's configuration nor its variables.
install_with_uv() {
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv || return 1
    index=${PIP_INDEX_URL:-$("$folder/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then
        export UV_DEFAULT_INDEX="$index"
    fi
    if [ -z "${SSL_CERT_FILE-}" ] && [ -n "${PIP_CERT-}" ]; then
        export SSL_CERT_FILE="$PIP_CERT"
    fi
    # Compiled once here: where Python may not write bytecode, each start of the server would take a second longer.
    "$folder/bin/uv" pip install --compile-bytecode --python "$folder/bin/python" -e '.[dev]'
}

"$folder/bin/python" -m pip --version >/dev/null 2>&1 || make_venv
install_with_uv || "$folder/bin/python" -m pip install --disable-pip-version-check -e '.[dev]'
touch "$folder/.installed"
