"""Train a student that is narrower than its teacher through projections: hidden states and attention relations.

    python benchmarks/narrow_student.py --teacher tiny/ --corpus blocks/ --output_dir narrow/ --hidden_size 96 \
        --max_train_minutes 1 --bf16 --torch_compile

The student has half of the layers, random weights, and the given width. It learns from soft targets and masked LM at
the masked tokens, from the teacher's last and middle hidden states (each through a learned projection), and from the
relations of the teacher's last attention. The script prints held-out metrics at the start and at the end.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForMaskedLM

from potstill import DistillationArguments, DistillationTrainer, build_student
from potstill.arguments import option
from potstill.signatures import call
from potstill.student import load_masked_lm


@dataclass
class Arguments(DistillationArguments):
    """Options of `distill`, and the width."""

    hidden_size: int = option(96, "Width of the student.")


def narrow_student(args: Arguments) -> str:
    """Train the student and return its held-out metrics before and after, as text."""
    teacher = load_masked_lm(args.teacher or "")
    teacher.config.hidden_dropout_prob = teacher.config.attention_probs_dropout_prob = 0.0
    depth = teacher.config.num_hidden_layers
    student = build_student(
        teacher,
        initialise="random",
        seed=args.seed,
        hidden_size=args.hidden_size,
        num_attention_heads=teacher.config.num_attention_heads,
    )
    losses: dict[str, Any] = {
        "soft_targets": {"weight": 5, "tokens": "masked"},
        "masked_lm": 2,
        "hidden_mse": {"weight": 1, "layers": {depth // 4: depth // 2, -1: -1}},
        "attention_relations": {"weight": 1, "teacher_layer": depth - 1, "relation_heads": 8},
    }
    args.losses = losses
    trainer = DistillationTrainer(student, args.corpus or "", args, teacher)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    trainer.save_model()
    AutoModelForMaskedLM.from_pretrained(args.output_dir)
    lines = [
        f"{when}: loss {found['eval_loss']:.3f}, accuracy {found['eval_accuracy']:.1%}, KL {found['eval_kl']:.3f}"
        for when, found in (("before", before), ("after", after))
    ]
    parameters = sum(parameter.numel() for parameter in student.parameters())
    return "\n".join([*lines, f"{trainer.state.global_step} steps, {parameters:,} parameters"])


if __name__ == "__main__":
    print(call(narrow_student, "narrow_student.py", sys.argv[1:]))
