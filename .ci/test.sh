#!/bin/sh
# The whole suite with .venv, then its engine-free part with the oldest and the newest supported Python, where this
# machine has them. The closing line of each run is repeated at the end, the whole suite's last.
# Arguments go to pytest; with some, only the whole suite's interpreter runs.
set -u

mkdir -p build/log
summary=""
code=0

# pytest's own exit code, through the pipe that keeps its closing line.
run() {
    label=$1
    log=build/log/pytest-$label.log
    shift
    { "$@" </dev/null 2>&1; echo $? >"$log.status"; } | tee "$log"
    result=$(cat "$log.status")
    rm -f "$log.status"
    [ "$result" = 0 ] || code=$result
    closing="python $label:
$(grep -E '^(=+ )?.*(passed|failed|error|no tests ran).* in [0-9.]+s' "$log" | tail -n 1)"
}

run "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" .venv/bin/python -m pytest "$@"
whole=$closing
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
        run "$version" "$folder/bin/python" -m pytest -m "not docker"
        summary="$summary$closing
"
    done
fi
echo
printf '%s%s\n' "$summary" "$whole"
exit "$code"
