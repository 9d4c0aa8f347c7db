"""Fine-tuning on SST-2 with potstill and with the settings of transformers' own example script.

    python benchmarks/finetuning.py --model student/ --task_data glue/ --output finetuning.json

The example (`examples/pytorch/text-classification/run_glue.py`) pads every row to 128 tokens and computes in float32.
Model, rows, batch size, learning rate, schedule, epochs, seed and evaluation set are the same in both.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, default_data_collator

from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.trainer import train_once
from potstill.training.hardware import hardware

KEPT = ("accuracy", "seconds", "training_seconds", "rows_per_second")


def potstill(args: FinetuneArguments) -> dict[str, float]:
    """Read, tokenise, train and score as `potstill finetune` does."""
    started = time.monotonic()
    job = Job.prepare(args)
    _, measured = train_once(job)
    seconds = time.monotonic() - started
    return {
        "accuracy": measured["score"],
        "seconds": seconds,
        "training_seconds": measured["seconds"]["training"],
        "rows_per_second": len(job.train) * args.num_train_epochs / measured["seconds"]["training"],
    }


def stock(args: FinetuneArguments, job: Job) -> dict[str, float]:
    """Tokenise, train and score as the example script does."""
    started = time.monotonic()

    def tokenised(split: datasets.Dataset) -> datasets.Dataset:
        def encode(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            return job.tokenizer(rows["text"], padding="max_length", truncation=True, max_length=args.max_length)

        return split.map(encode, batched=True, remove_columns=["text"])

    train, dev = tokenised(job.data.train), tokenised(job.data.dev["dev"])
    torch.manual_seed(args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2)
    names = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "warmup_steps", "weight_decay", "seed")
    options = {name: getattr(args, name) for name in names}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            args.output_dir, save_strategy="no", report_to="none", use_cpu=args.use_cpu, disable_tqdm=True, **options
        ),
        train_dataset=train,
        eval_dataset=dev,
        data_collator=default_data_collator,
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())},
    )
    before = time.monotonic()
    trainer.train()
    training = time.monotonic() - before
    accuracy = 100 * trainer.evaluate()["eval_accuracy"]
    return {
        "accuracy": accuracy,
        "seconds": time.monotonic() - started,
        "training_seconds": training,
        "rows_per_second": len(train) * args.num_train_epochs / training,
    }


def main() -> None:
    """Run both and print their results side by side."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--task_data", required=True)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--max_train_samples", type=int)
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        args = FinetuneArguments(
            output_dir=folder,
            model=options.model,
            task="sst2",
            task_data=options.task_data,
            learning_rate=options.learning_rate,
            max_train_samples=options.max_train_samples,
            use_cpu=options.use_cpu,
        )
        ours = potstill(args)
        theirs = stock(args, Job.prepare(args))
    print(f"{'':<20}{'potstill':>12}{'stock':>12}   on {hardware(args.device)}")
    for name in KEPT:
        print(f"{name.replace('_', ' '):<20}{ours[name]:>12,.1f}{theirs[name]:>12,.1f}")
    print(f"training, rows a second: {ours['rows_per_second'] / theirs['rows_per_second']:.2f} times")
    if options.output:
        options.output.write_text(json.dumps({"potstill": ours, "stock": theirs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
