#!/usr/bin/env bash
# The tables of docs/efficiency.md. Each name below is one command; most take less than 5 minutes on one H200, compiling included:
#
#     OUT=results bash benchmarks/efficiency.sh train-16x1024
#
# A command goes on where it stopped: rows in $OUT are kept. FLAGS changes the settings of all training rows alike, AHEAD is how many cases
# are compiled at once beforehand (0).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src:.${PYTHONPATH:+:$PYTHONPATH}"
: "${OUT:?name a folder: OUT=results}"
PYTHON=${PYTHON:-python}
FLAGS=${FLAGS:---compile model}
LLM=${LLM:-llama-3.2-1b}
AHEAD=${AHEAD:-0}

train() { # folder, then options
    # shellcheck disable=SC2086
    "$PYTHON" -m pal_audio bench train --llm "$LLM" --out "$OUT/$1" --compile-ahead "$AHEAD" $FLAGS "${@:2}"
}
infer() {
    "$PYTHON" -m pal_audio bench infer --llm "$LLM" --out "$OUT/$1" --compile-ahead "$AHEAD" "${@:2}"
}

fastest=(--set setup.compile_mode=reduce-overhead --set setup.optimizer=compiled)

name=${1:?one of: $(sed -n 's/^    \([a-z0-9-]*\)).*/\1/p' "$0" | tr '\n' ' ')}
case $name in
    train-16x1024) train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal ;;
    train-16x1024-graphs) train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal --set setup.compile_mode=reduce-overhead ;;
    # compiling AdamW takes minutes a case the first time
    train-16x1024-fastest) train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal "${fastest[@]}" ;;
    # and with generated kernels tuned by torch, which takes some ten minutes a case the first time
    train-16x1024-tuned) TORCHINDUCTOR_COORDINATE_DESCENT_TUNING=1 train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal "${fastest[@]}" ;;
    train-16x1024-fastest-lal) train "$name" --batch 16 --audio-tokens 1024 --integrations lal "${fastest[@]}" ;;
    train-16x1500-fastest) train "$name" --batch 16 --audio-tokens 1500 --integrations lal,pal "${fastest[@]}" ;;
    train-16x1500-fastest-lal) train "$name" --batch 16 --audio-tokens 1500 --integrations lal "${fastest[@]}" ;;
    train-16x1024-low-rank) train "$name" --batch 16 --audio-tokens 1024 --integrations lal --projector low_rank:256 ;;
    train-16x1500) train "$name" --batch 16 --audio-tokens 1500 --integrations lal,pal ;;
    train-64x1024) train "$name" --batch 64 --audio-tokens 1024 --integrations lal,pal --steps 10 ;;
    train-64x1024-graphs) train "$name" --batch 64 --audio-tokens 1024 --integrations lal,pal --steps 10 --set setup.compile_mode=reduce-overhead ;;
    train-64x1024-graphs-lal) train "$name" --batch 64 --audio-tokens 1024 --integrations lal --steps 20 --set setup.compile_mode=reduce-overhead ;;
    train-64x1024-fastest) train "$name" --batch 64 --audio-tokens 1024 --integrations lal,pal --steps 20 "${fastest[@]}" ;;
    train-64x1024-low-rank-graphs) train "$name" --batch 64 --audio-tokens 1024 --integrations lal --projector low_rank:256 --steps 10 --set setup.compile_mode=reduce-overhead ;;
    train-64x1024-low-rank-fastest) train "$name" --batch 64 --audio-tokens 1024 --integrations lal --projector low_rank:256 --steps 20 "${fastest[@]}" ;;
    train-64x1024-low-rank) train "$name" --batch 64 --audio-tokens 1024 --integrations lal --projector low_rank:256 --steps 10 ;;
    train-16x1024-lean) train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal --set setup.recompute_audio=full ;;
    train-64x1024-lean) train "$name" --batch 64 --audio-tokens 1024 --integrations lal,pal --steps 10 --set setup.recompute_audio=full ;;
    train-settings) # what each setting is worth; compiling AdamW alone takes 100 s a case
        number=0
        for more in "" "optimizer=compiled" "compile_mode=reduce-overhead" "optimizer=compiled compile_mode=reduce-overhead" \
            "recompute_audio=light" "recompute_audio=full"; do
            options=()
            for setting in $more; do options+=(--set "setup.$setting"); done
            train "$name-$((number++))" --batch 16 --audio-tokens 1024 --integrations lal --steps 10 "${options[@]}"
        done ;;
    train-projectors) train "$name" --batch 16 --audio-tokens 1024 --integrations lal --projector shared,low_rank:64,low_rank:256 ;;
    train-frozen) train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal --frozen-llm ;;
    train-layers) train "$name" --batch 16 --audio-tokens 1024 --integrations lal --layers all,from:8,every:2 ;;
    train-eager) FLAGS="" train "$name" --batch 16 --audio-tokens 1024,1500 --integrations lal,pal ;;
    train-checkpointing) train "$name" --batch 16 --audio-tokens 1024 --integrations lal,pal --checkpointing ;;
    train-encoder) train "$name" --batch 16 --audio-tokens 750 --integrations lal,pal --encoder whisper-large-v3 ;;
    train-lengths) FLAGS="" train "$name" --batch 8 --audio-tokens 256,512,1024,2048,4096 --integrations lal,pal --steps 10 ;;
    fit) # rows that the plan's constants are fitted on
        for llm in llama-3.2-1b qwen2.5-0.5b; do
            FLAGS="" LLM=$llm train "$name-$llm" --batch 4,16 --audio-tokens 256,1024 --integrations lal,pal --steps 10 --warmup 3
        done ;;
    check) # shapes and sizes that they are not fitted on
        for llm in llama-3.2-3b qwen2.5-1.5b; do
            FLAGS="" LLM=$llm train "$name-$llm" --batch 8 --audio-tokens 750 --integrations lal,pal --steps 10 --warmup 3
        done ;;
    fit-compiled)
        for llm in llama-3.2-1b qwen2.5-0.5b; do
            LLM=$llm train "$name-$llm" --batch 16 --audio-tokens 256,1024 --integrations lal --steps 10 --warmup 3
        done ;;
    check-compiled)
        for llm in llama-3.2-3b qwen2.5-1.5b; do
            LLM=$llm train "$name-$llm" --batch 8 --audio-tokens 750 --integrations lal --steps 10 --warmup 3
        done ;;
    infer-1500-compiled) # the prefill compiled and one CUDA graph
        infer "$name" --batch 1,16 --audio-tokens 1500 --integrations lal,pal --repeats 20 --decode compiled --prefill compiled ;;
    infer-1500-captured) # the same without compiling it
        infer "$name" --batch 1,16 --audio-tokens 1500 --integrations lal,pal --repeats 20 --decode compiled --prefill captured ;;
    infer-one-clip-compiled)
        infer "$name" --batch 64 --audio-tokens 1500 --integrations lal --one-clip --repeats 20 --decode compiled --prefill compiled ;;
    infer-1500) infer "$name" --batch 1,16 --audio-tokens 1500 --integrations lal,pal --new-tokens 64 --decode compiled ;;
    infer-one-clip) infer "$name" --batch 64 --audio-tokens 1500 --integrations lal --one-clip --decode compiled ;;
    infer-long) # 10 minutes and 1 hour; 25 tokens a second
        infer "$name" --batch 1 --audio-tokens 15000,90000 --integrations lal --chunk-tokens 15000 --set setup.positions=zero --repeats 2 --warmup 1 --new-tokens 16 ;;
    infer-6-hours)
        infer "$name" --batch 1 --audio-tokens 540000 --integrations lal --chunk-tokens 15000 --set setup.positions=zero --repeats 1 --warmup 1 --new-tokens 4 --decode loop ;;
    peers) "$PYTHON" benchmarks/peers.py --llm "$LLM" --batch 16 --audio-tokens 750 --out "$OUT/$name" ;;
    *) echo "efficiency.sh: no command $name" >&2; exit 2 ;;
esac
