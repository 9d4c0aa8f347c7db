#!/bin/sh
# From text to a leader board, in calls of limited time: repeat the same call until it prints "done".
#   benchmarks/leader_board.sh SECONDS TEACHER_GPU_MINUTES WORK RESULTS GLUE TEXT...
# Variables: BOARD_MINUTES (9), ENTRIES ("recipes/fast.yaml@4.5"), TEACHER_OPTIONS, BOARD_OPTIONS: more options.
# A call that runs out of time is stopped by a signal, and its training is saved. WORK has to stay between calls.
set -u
seconds=$1 minutes=$2 work=$3 results=$4 glue=$5
shift 5
began=$(date +%s)
limited() { # seconds that are left for a command
    left=$((seconds - $(date +%s) + began))
    [ "$left" -gt 20 ] || { echo "no time left: repeat the same call"; exit 0; }
    timeout --foreground --signal=TERM --kill-after=60 "$left" "$@" # to the command alone: two signals end a training at once
    status=$?
    [ "$status" -eq 0 ] && return
    case $status in 124 | 130 | 143) echo "out of time: repeat the same call"; exit 0 ;; esac
    exit "$status"
}
place="--work_dir $work --results_dir $results"
if [ ! -f "$results/teacher.json" ]; then
    # shellcheck disable=SC2086
    limited python -m reproduce.teacher $place --text "$@" --minutes "$minutes" ${TEACHER_OPTIONS:-}
fi
# shellcheck disable=SC2086
limited python -m reproduce.leader_board $place --minutes "${BOARD_MINUTES:-9}" \
    --entries ${ENTRIES:-recipes/fast.yaml@4.5} --task_data "$glue" ${BOARD_OPTIONS:-}
echo "done in $(($(date +%s) - began)) seconds of this call: $results/leader_board.json"
