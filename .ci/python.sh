#!/bin/sh
# Prints an interpreter that really runs: python.sh [3.10]
# With a version, exactly that one; without, the first that is 3.10 or newer. Prints nothing when there is none.
# Names on PATH can be shims of pyenv that fail, so each is tried, then pyenv's own folders.
set -u

runs() { "$1" -c "import sys; sys.exit(not ($2))" >/dev/null 2>&1; }

if [ $# = 0 ]; then
    for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if runs "$name" 'sys.version_info >= (3, 10)'; then
            command -v "$name"
            exit
        fi
    done
    exit
fi
for name in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if runs "$name" "'%d.%d' % sys.version_info[:2] == '$1'"; then
        command -v "$name"
        exit
    fi
done
