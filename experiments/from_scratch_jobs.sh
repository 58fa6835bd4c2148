#!/usr/bin/env bash
# The full recipes and the study on one GPU, all at once, within SECONDS. Reads nothing but this repository and TEXT.
#
#     experiments/from_scratch_jobs.sh input.txt /tmp/out 420
#
# Writes OUT/from_scratch.json, OUT/from_scratch_study.json, their tables and pictures; every run writes its file as it
# goes on, so that what is cut short leaves what it has. PYTHON names the interpreter.
set -u
text=$(realpath "$1") out=$(realpath -m "$2") seconds=${3:-420}
size=${SIZE:-full} preset=${PRESET:-modern-mini} tokens=${TOKENS:-5000000}  # smaller ones to try it on a CPU
python=${PYTHON:-python}
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$out/logs"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
for_recipes=$((seconds * 90 / 100)) per_run=$((seconds / 6))

scratch() { # NAME RECIPE OPTIONS...
    local name=$1
    shift
    timeout "$seconds" "$python" experiments/from_scratch.py "$@" --train-file "$text" --size "$size" \
        --max-seconds "$for_recipes" --output "$out/from_scratch.json" >"$out/logs/$name.log" 2>&1 &
}

study() { # SEED ARMS...
    local seed=$1
    shift
    timeout "$seconds" "$python" experiments/from_scratch_study.py --seeds "$seed" --arms "$@" --train-file "$text" \
        --preset "$preset" --tokens "$tokens" --max-seconds "$per_run" --bound-characters 6000 \
        --output "$out/from_scratch_study.json" \
        >"$out/logs/study-$seed-$1.log" 2>&1 &
}

scratch char_mercury char_mercury --settings theirs first_run ours
scratch minimal_mdm minimal_mdm
scratch bpe_rope bpe_rope
scratch bpe_rope-characters bpe_rope --characters
scratch roberta_guide-characters roberta_guide --characters
for seed in 0 1 2; do
    study "$seed" base bpe_512 bpe_2048 simple full
    study "$seed" time_sinusoidal time_learned time_adaln cosine batch_16 batch_128
done
wait
"$python" experiments/from_scratch.py --table --output "$out/from_scratch.json"
"$python" experiments/from_scratch_study.py --table --output "$out/from_scratch_study.json"
