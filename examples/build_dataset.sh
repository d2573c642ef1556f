#!/usr/bin/env bash
# Builds, checks and looks at one split.  Run it again to go on after a stop.
#
#   examples/build_dataset.sh SPLIT OUTPUT_DIR [SOURCE]
#
# SOURCE is a local copy of CT-RATE; without it the Hub is used (log in with `hf auth login`).
set -euo pipefail

if [[ $# -lt 2 || $# -gt 3 ]]; then
    echo "usage: $0 SPLIT OUTPUT_DIR [SOURCE]" >&2
    exit 2
fi
split=$1
output=$2
where=(--output-dir "$output" ${3:+--source "$3"})

if [[ ! -e "$output/plan.json" ]]; then
    # Stops here, with exit code 3, where there is no room.
    ctgpu plan --split "$split" "${where[@]}"
fi

# Failed samples (exit code 1) are tried once more; anything else ends the script.
code=0
ctgpu build --split "$split" "${where[@]}" || code=$?
if [[ $code -eq 1 ]]; then
    ctgpu build "${where[@]}" --retry-failed ||
        echo "some samples cannot be built; see $output/failures.jsonl" >&2
elif [[ $code -ne 0 ]]; then
    exit "$code"
fi

ctgpu verify "$output"
ctgpu inspect "$output" --num-samples 1
