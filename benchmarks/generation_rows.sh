#!/bin/sh
# All rows that a machine with many cores can time at once, each on one core of its own, then those of its GPU alone.
#
#     sh benchmarks/generation_rows.sh OUTPUT_DIRECTORY [SECONDS_OF_THE_CPU_PART] [SECONDS_OF_THE_GPU_PART]
#
# JSON files appear as rows are measured, so that a run which is cut leaves what it has. Neighbours share memory and
# clock: ratios within a process stand, seconds are those of a busy machine. PYTHON names the interpreter.
set -u
output=$1
cpu_seconds=${2:-240}
gpu_seconds=${3:-60}
python=${PYTHON:-python3}
mkdir -p "$output"
core=0
here=$(dirname "$0")
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONPATH OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

on_cpu() {  # the name of a file, then patterns of rows; past the last core it begins again at the first
    name=$1
    shift
    CUDA_VISIBLE_DEVICES="" taskset -c "$((core % $(nproc)))" "$python" "$here/generation.py" --rows "$@" --rounds 7 \
        --max-seconds "$cpu_seconds" --output "$output/cpu_$name.json" > "$output/cpu_$name.log" 2>&1 &
    core=$((core + 1))
}

on_gpu() {
    name=$1
    shift
    "$python" "$here/generation.py" --device cuda --rounds 7 --max-seconds "$gpu_seconds" --output \
        "$output/gpu_$name.json" --rows "$@" > "$output/gpu_$name.log" 2>&1
}

on_cpu base_b8_greedy_bf16 base-b8-16+64-greedy-bfloat16-bfloat16
on_cpu base_b8_greedy_mixed base-b8-16+64-greedy-bfloat16-float32
on_cpu base_b8_greedy_fp32 base-b8-16+64-greedy-float32-float32
on_cpu base_b8_int8 base-b8-16+64-greedy-int8-float32
on_cpu base_b8_confidence base-b8-16+64-confidence-bfloat16-bfloat16
on_cpu base_b8_random base-b8-16+64-random-bfloat16-bfloat16
on_cpu base_b1_fp32 base-b1-16+64-greedy-float32-float32
on_cpu base_b1_bf16 base-b1-16+64-greedy-bfloat16-bfloat16
on_cpu base_b1_mixed base-b1-16+64-greedy-bfloat16-float32 base-b1-16+64-random-bfloat16-bfloat16
on_cpu base_b1_long base-b1-128+128-greedy-float32-float32 base-b1-128+128-greedy-bfloat16-bfloat16
on_cpu small_b16 'small-b16-16+64-greedy-*float*-*'
on_cpu small_b16_sampled small-b16-16+64-confidence-bfloat16-bfloat16 small-b16-16+64-random-bfloat16-bfloat16
on_cpu small_b8 'small-b8-16+64-greedy-*float*-*'
on_cpu small_b1 'small-b1-16+64-greedy-*float*-*'
on_cpu small_long 'small-b16-128+128-*-bfloat16-bfloat16' small-b16-128+128-greedy-float32-float32
on_cpu small_sampled_fp32 'small-b16-16+64-[cr]*-float32-float32'
wait
if command -v nvidia-smi > /dev/null; then
    on_gpu eager 'base-b[18]-16+64-*-bfloat16-bfloat16' base-b8-16+64-greedy-float32-float32
    on_gpu recorded 'base-b[18]-16+64-*-bfloat16-bfloat16' base-b8-16+64-greedy-float32-float32 --torch-compile
fi
"$python" "$here/generation.py" --table "$output"/*.json --output "$output/generation_speed.md"
