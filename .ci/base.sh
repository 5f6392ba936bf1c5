#!/bin/sh
# The base image for the default settings: python:3.13-slim when it is here or can be pulled, else a Debian one.
# The server would do the same at its first start; here it runs at the same time as the rest of the set-up.
set -eu

image=python:3.13-slim
fallback=kernel-server-base:trixie

have() { docker image inspect "$1" >/dev/null 2>&1; }

# A user's own image is the server's business.
[ -z "${DOCKER_IMAGE-}" ] || exit 0
if have "$image" || have "$fallback"; then
    exit 0
fi
echo "kernel-server: pulling $image"
# Seconds; an engine without a way to the registry gives up by itself after 15 or less.
if timeout 300 docker pull -q "$image"; then
    exit 0
fi
echo "kernel-server: it cannot be pulled; making a Debian base image"
exec sh container/make-base.sh "$fallback"
