#!/bin/sh
# The whole suite with .venv, then its engine-free part with the oldest and the newest supported Python, side by side,
# where this machine has them. The closing line of each run is repeated at the end, the whole suite's last.
# Arguments go to pytest; with some, only the whole suite's interpreter runs.
set -u

mkdir -p build/log
rm -f build/log/pytest-*
code=0

# pytest's closing line of a log.
closing() {
    grep -E '^(=+ )?.*(passed|failed|error|no tests ran).* in [0-9.]+s' "build/log/pytest-$1.log" | tail -n 1
}

# Runs pytest with a log named after its first argument; its exit code goes to a file beside it.
run() {
    label=$1
    shift
    { "$@" </dev/null 2>&1; echo $? >"build/log/pytest-$label.status"; } >"build/log/pytest-$label.log"
}

finished() {
    [ "$(cat "build/log/pytest-$1.status")" = 0 ] || code=1
    summary="${summary:-}python $1:
$(closing "$1")
"
}

main=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
run "$main" .venv/bin/python -m pytest "$@" &
whole=$!
tail --pid="$whole" -n +1 -F "build/log/pytest-$main.log" 2>/dev/null
wait "$whole"

others=""
if [ $# = 0 ]; then
    for version in 3.10 3.13; do
        python=$(sh .ci/python.sh "$version")
        if [ -z "$python" ]; then
            echo "python $version: not on this machine, skipped"
            continue
        fi
        folder=.venv-$version
        if [ ! -e "$folder/.installed" ] || [ pyproject.toml -nt "$folder/.installed" ]; then
            sh .ci/step.sh "venv-$version" sh .ci/venv.sh "$folder" "$python" || { code=1; continue; }
        fi
        others="$others $version"
    done
    for version in $others; do
        echo "    python $version: the engine-free part of the suite"
        run "$version" ".venv-$version/bin/python" -m pytest -m "not docker" &
    done
    wait
fi
for version in $others; do
    finished "$version"
    [ "$(cat "build/log/pytest-$version.status")" = 0 ] || cat "build/log/pytest-$version.log"
done
finished "$main"
echo
printf '%s' "$summary"
exit "$code"
