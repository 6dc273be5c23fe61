#!/usr/bin/env bash
# Train the shipped models further on one GPU, all side by side: every process renders on processor cores of its own
# while the GPU works for the others.
#
#   scripts/train_on_gpu.sh                                 # 13 minutes, all four models, into runs/gpu
#   MINUTES=8 scripts/train_on_gpu.sh toy-video toy-dit     # these two
#   PRINT=1 scripts/train_on_gpu.sh                         # say what would run
#
# It begins with the shipped weights and with the last part of the curriculum; the same command goes on where it was
# stopped. Environment: MINUTES of training (the start and the writing of models take about one more), FOLDER,
# TOKENS (latent tokens per step and process), BEGIN (share of the curriculum to skip), LR, SEED, PYTHON. The models
# come out as FOLDER/NAME/model; judge them before they are shipped, such as by
#   python -m benchmarks toy_video --model runs/gpu/toy-video/model
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${MINUTES:-13} folder=${FOLDER:-runs/gpu} tokens=${TOKENS:-24000} begin=${BEGIN:-0.6} lr=${LR:-6e-4}
seed=${SEED:-0} python=${PYTHON:-python}
models=("$@")
[ ${#models[@]} -gt 0 ] || models=(toy-video toy-image toy-dit toy-av)
threads=$(($(nproc) / ${#models[@]}))
[ "$threads" -gt 0 ] || threads=1

# The budget of a command is for all stages; the autoencoders' shares are not used, since they are the model's own.
budget() {
    "$python" -c "
from importlib import import_module
making = import_module('genkit.training.toys.${1#toy-}.run').MAKING
print(round($minutes / making.shares[making.main], 3))"
}

running=()
stop() { [ ${#running[@]} -eq 0 ] || kill "${running[@]}" 2>/dev/null || true; }
trap stop INT TERM
for model in "${models[@]}"; do
    [ -f "scripts/train_${model//-/_}.py" ] || { echo "got $model, allowed: toy-video toy-image toy-dit toy-av" >&2; exit 2; }
    command=("$python" "scripts/train_${model//-/_}.py" --folder "$folder/$model" --weights "$model" --begin "$begin"
        --lr "$lr" --tokens "$tokens" --mixed-precision bf16 --threads "$threads" --minutes "$(budget "$model")"
        --seed "$seed" --sample-minutes 0)
    # The shipped toy-dit has learned word order; the text encoder of toy-video has not.
    [ "$model" != toy-dit ] || command+=(--text-steps 0)
    if [ -n "${PRINT:-}" ]; then
        echo "${command[*]}"
        continue
    fi
    mkdir -p "$folder/$model"
    "${command[@]}" > "$folder/$model/output.log" 2>&1 &
    running+=($!)
    echo "$model: process $!, $folder/$model/output.log"
done

failed=0
for process in "${running[@]}"; do wait "$process" || failed=1; done
for model in "${models[@]}"; do
    [ -n "${PRINT:-}" ] || { [ -d "$folder/$model/model" ] && echo "$model: $folder/$model/model"; } || {
        echo "$model failed:" >&2
        tail -n 5 "$folder/$model/output.log" >&2
    }
done
exit $failed
