#!/usr/bin/env bash
# Train rerankers on TREC-QA with several seeds: a teacher, its student of 3 layers, and the same layers on the labels
# alone. Print MAP and MRR on the dev set and on the test set: the median over the seeds, the lowest and the highest.
#
#     benchmarks/rerankers.sh all-MiniLM-L6-v2/ data/rerank/ out/
#
# The arguments are an encoder, a folder with trecqa-train.csv, trecqa-dev.csv and trecqa-test.csv, and an output folder.
# Further options go to all trainings, and SEEDS names the seeds. To try it on a CPU:
#
#     SEEDS="1 2" benchmarks/rerankers.sh all-MiniLM-L6-v2/ data/rerank/ out/ --use_cpu --max_train_samples 300 \
#         --max_length 32 --num_train_epochs 1
#
# A run whose folder is complete is not repeated.
set -euo pipefail
encoder=$1 data=$2 out=$3
shift 3
seeds=${SEEDS:-1 2 3 4 5}
rate=${LEARNING_RATE:-1e-4}
losses=${LOSSES:-'{margin_mse: 1}'}
files=(--train_data "$data/trecqa-train.csv" --eval_data "$data/trecqa-dev.csv")
mkdir -p "$out"

train() {  # output folder, seed, options
    local folder=$1 seed=$2
    shift 2
    if [ ! -e "$folder/results.json" ]; then
        potstill finetune --task rerank "${files[@]}" --learning_rate "$rate" --seed "$seed" --output_dir "$folder" "$@"
    fi
}

models=()
for seed in $seeds; do
    train "$out/teacher-$seed" "$seed" --model "$encoder" "$@"
    models+=("teacher=$out/teacher-$seed")
done
# The students begin with layers of the encoder, and not of the teacher: the teacher has already read the labels.
for seed in $seeds; do
    train "$out/student-$seed" "$seed" --model "$encoder" --num_hidden_layers 3 --teacher "$out/teacher-$seed" \
        --losses "$losses" --without_teacher_too false "$@"
    models+=("student=$out/student-$seed")
done
for seed in $seeds; do
    train "$out/alone-$seed" "$seed" --model "$encoder" --num_hidden_layers 3 "$@"
    models+=("alone=$out/alone-$seed")
done
# Students that begin with layers of the teacher, taught and alone: this start knows of the labels.
for seed in $seeds; do
    train "$out/student-of-teacher-$seed" "$seed" --model "$out/teacher-$seed" --num_hidden_layers 3 \
        --teacher "$out/teacher-$seed" --losses "$losses" --without_teacher_too false "$@"
    train "$out/alone-of-teacher-$seed" "$seed" --model "$out/teacher-$seed" --num_hidden_layers 3 "$@"
    models+=("student-of-teacher=$out/student-of-teacher-$seed" "alone-of-teacher=$out/alone-of-teacher-$seed")
done

potstill compare "${models[@]}" --format markdown --output "$out/dev.md"
potstill evaluate --models "${models[@]}" --suite rerank --rerank_data "$data/trecqa-dev.csv" "$data/trecqa-test.csv" \
    --output_dir "$out/results"
