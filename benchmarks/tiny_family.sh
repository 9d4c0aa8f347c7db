#!/usr/bin/env bash
# Pre-train a tiny teacher of a family from text, and train its student with and without the teacher. The teacher has
# twelve layers, a width of 128 and a vocabulary of 8,192. It takes four minutes on one GPU, and each student two.
#
#     benchmarks/tiny_family.sh roberta simple-wikipedia/ text/ out/
#
# The arguments are the family, the text for the vocabulary, the text for everything else (both as for `prepare --text`)
# and an output folder. Further options go to all three trainings. To try it on a CPU:
#
#     benchmarks/tiny_family.sh roberta some.txt some.txt out/ --use_cpu --bf16 false --torch_compile false \
#         --cuda_graphs false --max_steps 8 --per_device_train_batch_size 2 --max_eval_samples 4
#
# The script ends by printing the table of docs/results/paper.md, "The embedded teacher to 6 layers".
set -euo pipefail
family=$1 vocabulary=$2 text=$3 out=$4
shift 4
recipes=$(dirname "$0")/../recipes
mkdir -p "$out"

if [ ! -e "$out/vocabulary" ]; then
    potstill prepare --text "$vocabulary" --train_tokenizer --model_type "$family" --vocab_size "${VOCAB_SIZE:-8192}" \
        --output_dir "$out/vocabulary"
fi
if [ ! -e "$out/blocks" ]; then
    potstill prepare --text "$text" --tokenizer "$out/vocabulary/tokenizer" --output_dir "$out/blocks"
fi
potstill pretrain --config "$recipes/pretrain-tiny.yaml" --model_type "$family" --max_train_minutes 4 \
    --corpus "$out/blocks" --output_dir "$out/teacher" "$@"
distil=(potstill distill --config "$recipes/distil-tiny.yaml" --max_train_minutes 2 --teacher "$out/teacher")
"${distil[@]}" --corpus "$out/blocks" --output_dir "$out/student" "$@"
"${distil[@]}" --corpus "$out/blocks" --output_dir "$out/alone" --alpha_ce 0 --alpha_cos 0 "$@"

python - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

runs = {name: json.loads(Path(sys.argv[1], name, "results.json").read_text()) for name in ("student", "alone")}
first, last = (runs["student"]["held_out"][when] for when in ("initial", "final"))
taught, alone = first["teacher_accuracy"], runs["alone"]["held_out"]["final"]
rows = [
    ("student as initialised", None, first),
    ("student, distilled", runs["student"]["cost"], last),
    ("student, without the teacher", runs["alone"]["cost"], alone),
]
print("| | steps | tokens | loss (nats) | accuracy | of the teacher's | KL | agreement | cosine |")
print("|---|---|---|---|---|---|---|---|---|")
print(f"| teacher | | | {first['teacher_loss']:.3f} | {taught:.1%} | 100 % | | | |")
for name, cost, found in rows:
    steps, tokens = (f"{cost['steps']:,}", f"{cost['tokens'] / 1e6:.1f} M") if cost else (0, 0)
    kept = found["accuracy"] / taught if taught else 0
    figures = f"{found['loss']:.3f} | {found['accuracy']:.1%} | {kept:.1%} | {found['kl']:.3f}"
    print(f"| {name} | {steps} | {tokens} | {figures} | {found['agreement']:.1%} | {found['cosine']:.3f} |")
PYTHON
