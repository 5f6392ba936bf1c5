#!/bin/sh
# The tests that need the engine with .venv; beside them, since most of them wait, all others with the oldest and then the newest
# supported Python, where this machine has them, else with .venv. The closing line of each run is repeated at the end, that of .venv last.
# Arguments go to pytest; with some, .venv runs what they select.
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
others="" everything=""
if [ $# = 0 ]; then
    for version in 3.10 3.13; do
        python=$(sh .ci/python.sh "$version")
        if [ "$version" = "$main" ]; then
            everything=yes
            continue
        fi
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
    if [ -n "$others" ] && [ -z "$everything" ]; then
        set -- -m docker
    fi
fi

for version in $others; do
    echo "    python $version: the tests that need no engine, beside those that do"
    run "$version" ".venv-$version/bin/python" -m pytest -m "not docker"
done &
run "$main" .venv/bin/python -m pytest "$@" &
whole=$!
tail --pid="$whole" -n +1 -F "build/log/pytest-$main.log" 2>/dev/null
wait
for version in $others; do
    finished "$version"
    [ "$(cat "build/log/pytest-$version.status")" = 0 ] || cat "build/log/pytest-$version.log"
done
finished "$main"
echo
printf '%s' "$summary"
exit "$code"
