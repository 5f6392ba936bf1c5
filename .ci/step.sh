#!/bin/sh
# Runs one step of the set-up quietly: step.sh NAME COMMAND...
# One line with its seconds at the end; its progress lines while it works (those with STEP_PREFIX, by default what our
# scripts print for people); the end of its log when it fails. The whole log is in build/log/NAME.log. The exit code is
# the command's.
set -u

name=$1
shift
mkdir -p build/log
log=build/log/$name.log
status=build/log/$name.status
started=$(date +%s.%N)
{
    "$@" </dev/null 2>&1
    echo $? >"$status"
} | tee "$log" | sed -un "s/^${STEP_PREFIX-kernel-server: }/    $name: /p"
code=$(cat "$status")
rm -f "$status"
seconds=$(echo "$started $(date +%s.%N)" | awk '{ printf "%.1f", $2 - $1 }')
if [ "$code" = 0 ]; then
    printf '  ok    %-14s %6s s\n' "$name" "$seconds"
else
    printf '  FAIL  %-14s %6s s\n' "$name" "$seconds"
    echo "----- the end of $log:" >&2
    tail -n 40 "$log" >&2
    echo "-----" >&2
fi
exit "$code"
