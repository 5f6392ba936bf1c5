#!/bin/sh
# Installs the kernel layer into an image, as root, during `docker build`. For dash and busybox.
#
# Exit codes, each with one clear last line on stderr (kernel_server/hosts/images.py reads them):
#   95  the base image has no Python >= 3.10 on PATH
#   96  there is no way to get pip for it
#   97  the package index cannot be reached from the build's network
#   1   anything else; the output above says what
set -eu
umask 022

home=/opt/kernel_server
venv=$home/venv
# pip's own defaults (5 retries, growing pauses) would keep a build without network busy for minutes.
probe_timeout_seconds=8

fail() {
    code=$1
    shift
    echo "kernel-server: $*" >&2
    exit "$code"
}

say() { echo "kernel-server: $*"; }

# The first Python >= 3.10 on PATH: `python3`, then `python` (conda and venv images have both, and mean the same).
find_python() {
    for name in python3 python; do
        candidate=$(command -v "$name" 2>/dev/null) || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
        found="${found-} $candidate ($("$candidate" -V 2>&1 || true))"
    done
    fail 95 "the base image has no Python >= 3.10 on PATH${found:+; found:$found}." \
        "Choose an image with Python 3.10 or newer (DOCKER_IMAGE), or install python3 in it."
}

# Programs must trust what the user's network needs: the given bundle, else the image's own store. pip of older
# images brings its own list of authorities and ignores that store, so both are told by name.
set_certificates() {
    for bundle in "$home/ca-bundle.crt" "${SSL_CERT_FILE-}" /etc/ssl/certs/ca-certificates.crt \
        /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem; do
        if [ -n "$bundle" ] && [ -s "$bundle" ]; then
            export PIP_CERT="$bundle" SSL_CERT_FILE="$bundle" REQUESTS_CA_BUNDLE="$bundle"
            return
        fi
    done
}

# Distributions ship Python without ensurepip: ask the package manager of the image for it.
install_pip_packages() {
    if command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -q -o APT::Update::Error-Mode=any -o Acquire::Retries=1 -o Acquire::http::Timeout=15 >&2 ||
            fail 97 "the base image's python has no pip, and its Debian package sources cannot be reached."
        apt-get install -q -y --no-install-recommends python3-venv >&2 || return 1
        rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
    elif command -v apk >/dev/null; then
        apk add --no-cache py3-pip >&2 || return 1
    elif command -v microdnf >/dev/null; then
        microdnf install -y python3-pip >&2 && microdnf clean all >&2 || return 1
    elif command -v dnf >/dev/null; then
        dnf install -y python3-pip >&2 && dnf clean all >&2 || return 1
    else
        return 1
    fi
}

# Sets `pip`: the command that installs into the venv.
make_venv() {
    rm -rf "$venv"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null && "$python" -m venv --system-site-packages "$venv"; then
        pip="$venv/bin/python -m pip"
        return
    fi
    rm -rf "$venv"
    "$python" -m venv --system-site-packages --without-pip "$venv" 2>/dev/null || return 1
    # A pip of the image, seen through the system site packages, installs into the venv as well.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || return 1
    pip="$venv/bin/python -m pip"
}

# `--system-site-packages` names the site packages of the interpreter below. Whatever else the image's python
# imports from (its own venv, PYTHONPATH) is added by name, after the venv's own packages.
link_image_packages() {
    site=$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    (cd / && "$python" -c 'import os, sys; print("\n".join(p for p in sys.path if p and os.path.isdir(p)))') |
        "$venv/bin/python" -I -c 'import sys; print("\n".join(p for p in sys.stdin.read().split("\n") if p and p not in sys.path))' \
        >"$site/kernel_server_image.pth"
    prefer_user_packages >"$site/kernel_server_user.pth"
}

# What a session installs comes before what the image has, also for the programs that it starts; kernel_host does the same
# for kernels. One line, which site.py executes.
prefer_user_packages() {
    cat <<'EOT'
import os, sys; u = os.path.expanduser("~/.local/lib/python%d.%d/site-packages" % sys.version_info[:2]); sys.flags.no_user_site or not os.path.isdir(u) or sys.path.insert(next((i for i, p in enumerate(sys.path) if p.endswith("-packages")), len(sys.path)), u)
EOT
}

pip_install() {
    # shellcheck disable=SC2086  # $pip is a command with its arguments
    $pip install --quiet --no-compile --no-cache-dir --disable-pip-version-check --root-user-action=ignore "$@"
}

# Three times as fast as pip for the data stack (5 s against 15 s). uv does not read pip's configuration.
install_with_uv() {
    index=${PIP_INDEX_URL:-$($pip config get global.index-url 2>/dev/null || true)}
    if pip_install "$(grep '^uv==' "$home/requirements-kernel.txt")"; then
        ${index:+env UV_DEFAULT_INDEX="$index"} "$venv/bin/uv" pip install --quiet --no-cache --no-progress \
            --python "$venv/bin/python" "$@" && return
        say "uv could not install the packages; trying pip"
    fi
    pip_install "$@"
}

can_reach_index() {
    # shellcheck disable=SC2086
    $pip download --quiet --no-deps --no-cache-dir --disable-pip-version-check --retries 0 \
        --timeout "$probe_timeout_seconds" --dest /tmp/kernel_server_probe comm
}

# The root file system is read-only when kernels run, so what is not compiled now is compiled at each start.
# Official Python images come without any .pyc, images made with uv as well. Tests are left out for size.
compile_everything() {
    "$venv/bin/python" -I -c 'import os, sys; print("\n".join(p for p in sys.path if os.path.isdir(p)))' |
        while IFS= read -r folder; do
            "$venv/bin/python" -I -m compileall -q -j 0 -x '/(tests?|testing/data|lib2to3|idlelib)/' "$folder" \
                >/dev/null 2>&1 || true # a package may hold a file of another Python version
        done
}

# kernel_host copies this folder to where matplotlib may write: building the cache takes seconds.
build_font_cache() {
    mkdir -p "$home/matplotlib"
    MPLCONFIGDIR="$home/matplotlib" "$venv/bin/python" -I -c 'import matplotlib.font_manager' >/dev/null 2>&1 ||
        say "no matplotlib in this image"
}

python=$(find_python)
unset PYTHONDONTWRITEBYTECODE PIP_USER PIP_TARGET PIP_REQUIRE_VIRTUALENV || true
export PIP_BREAK_SYSTEM_PACKAGES=1
say "using $python ($("$python" -V 2>&1))"
set_certificates

if ! make_venv; then
    say "this python has no pip; installing it with the image's package manager"
    install_pip_packages && make_venv ||
        fail 96 "cannot get pip for $python of the base image. Install pip and venv in that image" \
            "(Debian, Ubuntu: apt-get install python3-venv; Alpine: apk add py3-pip; Fedora: dnf install python3-pip)."
fi
link_image_packages

if ! can_reach_index; then
    fail 97 "the Python package index cannot be reached from the build's network (pip's reason is above)." \
        "Check the network, a proxy (HTTPS_PROXY) or a private CA (PY_EXEC_CA_BUNDLE)."
fi
rm -rf /tmp/kernel_server_probe

say "installing the kernel"
if [ "${DATA_STACK:-1}" = 1 ]; then
    install_with_uv -r "$home/requirements-kernel.txt" -r "$home/requirements-data.txt"
else
    # pip, not uv: it sees the packages of the image and leaves those alone that fit, where uv would put its own
    # choice on top of them.
    pip_install -r "$home/requirements-kernel.txt"
fi

say "compiling"
compile_everything
build_font_cache
# Mount points of the server: the root file system is read-only when the image runs.
mkdir -p /workspace /run/kernel_server
rm -rf /root/.cache /tmp/pip-* /tmp/kernel_server_*
say "the kernel layer is ready"
