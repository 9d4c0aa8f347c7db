"""The options of `finetune` that its help describes. `finetune_arguments` checks them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from potstill.arguments import RunArguments, option
from potstill.finetuning.objective import TaskObjective
from potstill.objective.ranking import RANKING_LOSSES
from potstill.tasks.registry import TASKS
from potstill.tasks.rows import OnBadRows
from potstill.tasks.task import USUAL

OPTIONS_READ = ("potstill.tasks.registry", "potstill.objective.ranking")
"""Other modules whose contents are in the help of the options."""


WEIGHTS: dict[str, Any] = {one.name: one.default for one in fields(TaskObjective)}
"""Option of a teacher's losses → its default. Rerankers have `losses` in their place."""


def _lengths() -> str:
    """Return the default maximum lengths in words: that of most tasks first, then the tasks with another one."""
    common = USUAL.max_length
    others: dict[int, list[str]] = {}
    for name, task in TASKS.items():
        if task.defaults.max_length != common:
            others.setdefault(task.defaults.max_length, []).append(name)
    return ", ".join([str(common), *(f"for {' and '.join(names)} {length}" for length, names in others.items())])


@dataclass
class FinetuneOptions(RunArguments):
    """The options of `potstill finetune`, with their defaults and their help."""

    model: str | None = option(
        None, "Folder or hub name of the model to fine-tune; or bilstm, for a new BiLSTM; or see --stages."
    )
    task: str | None = option(
        None,
        f"Task to fine-tune it on: {', '.join(TASKS)}; or a .yaml file.",
        required=True,
    )
    task_data: str | None = option(
        None, "Folder with the data of the task or of all tasks, or one file for SQuAD; the hub's dataset if not given."
    )
    train_data: list[str] | str | None = option(
        None, "Your own files to train on, in place of --task_data.", several=True
    )
    eval_data: list[str] | str | None = option(
        None, "Your own files to score, each by itself; else --dev_share is held out.", several=True
    )
    text_column: str | None = option(None, "Column of the text, or of the words, in your own files; text or tokens.")
    pair_column: str | None = option(None, "Column of the second text, if your own task is on pairs of texts.")
    label_column: str | None = option(
        None, "Column of the label, score or tags in your own files; label if not given, and upos for CoNLL-U."
    )
    columns: list[str] | None = option(
        None, "Names of the columns, with commas between, of files whose first line does not name them."
    )
    label_names: str | None = option(
        None, "File with the names of your labels, one a line; rows may then hold their numbers, from 0."
    )
    label_separator: str | None = option(None, "Multilabel: what stands between labels in a field; a comma.")
    metric: str | None = option(
        None,
        "Metric that is the score of your own task: accuracy (if not given), macro_f1, micro_f1 or matthews; for "
        "multilabel micro_f1 (if not given), macro_f1 or mean_average_precision; for regression pearson (if not given) "
        "or spearman; for tagging f1 (if not given, of entities) or accuracy.",
    )
    rerank_columns: list[str] | None = option(
        None, "Rerank: names of the columns of query, passage and label; of query and passage if there are no labels."
    )
    num_hidden_layers: int | None = option(
        None, "Fine-tune a model with only so many layers of --model; all of them if not given."
    )
    layers: str | None = option(
        None,
        "The layers to keep: a list such as 0,2,5, or with --num_hidden_layers a rule: alternate (if not given), "
        "first, last or even.",
    )
    augment: dict | str | None = option(
        None,
        "Number of texts without labels to make from every labelled row, for the teacher alone; or a mapping such as "
        "'{samples: 20, mask: 0.1, replace: 0.1, ngram: 0.25, tagger: FOLDER}'.",
    )
    bilstm: dict | str | None = option(
        None,
        "With --model bilstm: its sizes and sources, such as '{hidden_size: 300, tokenizer: FOLDER, embeddings: "
        "FOLDER}'. Tokenizer and embeddings are the teacher's if not given.",
    )
    max_length: int | None = option(None, f"Longest input in tokens; {_lengths()} if not given.")
    max_train_samples: int | None = option(
        None, "Number of training rows, a random sample that is the same for all seeds; all if not given."
    )
    max_eval_samples: int | None = option(
        None, "Number of rows of each dev split to score, sampled in the same way; all if not given."
    )
    freeze_encoder: bool = option(
        False, "Do not train the encoder; train a BiLSTM with attention on its hidden states, as was done with ELMo."
    )
    teacher: list[str] | str | None = option(
        None, "Folder or hub name of a model that is already fine-tuned on the task; or several of them.", several=True
    )
    teacher_heads: Literal["average", "separate"] | None = option(
        None,
        "With several teachers: average (learn from the mean of their probabilities, if not given) or separate (a head "
        "for each teacher in training, whose mean the saved model has).",
    )
    teacher_weights: list[float] | None = option(
        None, "With several teachers: the weight of each, in the same order; equal weights if not given."
    )
    unlabelled: list[str] | str | None = option(
        None, "Texts without labels, which the teacher alone teaches: files, folders or patterns.", several=True
    )
    unlabelled_ratio: float | None = option(
        None, "Unlabelled texts for each labelled row in an epoch; each text once in an epoch if not given."
    )
    unlabelled_columns: list[str] | None = option(
        None, "Columns of the texts in --unlabelled: one name, or two for pairs; those of the task if not given."
    )
    stages: dict | str | None = option(
        None,
        "Run several stages: some of pretrain,distill,finetune, in this order. Or a mapping with options of a stage, "
        "such as '{pretrain: {max_train_minutes: 10}, distill: {num_train_epochs: 6}, finetune: {}}'.",
    )
    shape: str | None = option(
        None,
        "With --stages: shape of a new model, in place of --model: tiny, mini, small, medium, base, or layers and "
        "width such as 6x256.",
    )
    corpus: str | None = option(None, "For the stage pretrain: folder written by `potstill prepare`.")
    without_unlabelled_too: bool = option(
        True, "With --unlabelled, also do the same run without these texts, and report that score too."
    )
    class_weights: str | None = option(
        None, "balanced: a class counts as much as any other in the loss on the labels, however rare it is."
    )
    losses: dict | str | None = option(
        None,
        f"Rerank: losses, each with its weight or a mapping of options: {', '.join(RANKING_LOSSES)}. For example "
        "'{margin_mse: 1, labels: 0.5}'.",
    )
    alpha_ce: float | None = option(None, f"Weight of the teacher's soft targets; {WEIGHTS['alpha_ce']} if not given.")
    alpha_task: float | None = option(
        None, f"Weight of the labels, if there is a teacher; {WEIGHTS['alpha_task']} if not given."
    )
    alpha_cos: float | None = option(
        None,
        "Weight of the cosine loss between hidden states of model and teacher, whose widths must be equal; 0 if "
        "not given.",
    )
    temperature: float | None = option(None, f"Temperature of the soft targets; {WEIGHTS['temperature']} if not given.")
    soft_positions: Literal["answer", "all"] | None = option(
        None,
        "Tokens for the soft targets of a span: answer (those where an answer may start or end, if not given) or all.",
    )
    soft_loss: Literal["kl", "mse"] | None = option(
        None,
        "Loss of the soft targets: kl, the divergence of the probabilities (if not given), or mse, the squared "
        "difference of the logits.",
    )
    quantization: Literal["int8", "int4"] | None = option(
        None,
        "Train the model for its int8 export: it computes as `export --format onnx-int8` does, or for int4 with "
        "--weight_bits 4, and is saved in float.",
    )
    without_teacher_too: bool = option(
        True, "With --teacher, also do the same run without it, and report that score too."
    )
    stride: int = option(128, "SQuAD: tokens that two consecutive windows of a context share.")
    max_answer_length: int = option(30, "SQuAD: maximum length of an answer in tokens.")
    n_best: int = option(20, "SQuAD: number of best answers to keep for each question.")
    null_threshold: float = option(
        0.0, "SQuAD 2.0: predict no answer if its score exceeds the best answer's by more than this."
    )
    dev_share: float = option(
        0.2, "Your own data or SQuAD from one file: share of the rows, or of the articles, to hold out and score."
    )
    on_bad_answer: Literal["error", "skip"] = option(
        "error", "SQuAD: what to do if the context does not contain an answer at answer_start: error or skip."
    )
    on_bad_rows: OnBadRows = option(
        "stop", "What to do with rows that cannot be used, such as broken lines: stop, or skip and count them."
    )
    seed: int = option(42, "Seed of the head's initial weights, the order of the rows, and dropout.")

    learning_rate: float | None = option(None, "Peak learning rate of AdamW; the task's default if not given.")
    num_train_epochs: float | None = option(None, "Passes over the data; the task's default if not given.")
    per_device_train_batch_size: int | None = option(
        None, "Rows per device in a micro-batch; the task's default if not given."
    )
    per_device_eval_batch_size: int = option(128, "Rows to score at a time.")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    warmup_steps: float = option(0.1, "Linear warm-up: below 1 a share of the training, from 1 on a number of steps.")
    bf16: bool | None = option(None, "Compute in bfloat16 under autocast; if not given, on GPUs that support it.")
    cuda_graphs: bool = option(True, "Record a step as a CUDA graph for each length of batch, and replay it.")
    logging_steps: float = option(100, "Steps between two logs of the losses. Not each is a printed line.")
    metric_for_best_model: str | None = option(
        "score", "Metric by which --load_best_model_at_end chooses; higher is better."
    )
    eval_strategy: str = option("no", "When to score the dev set before the end: no, steps or epoch.")
    save_strategy: str = option("no", "When to save checkpoints: no, steps or epoch; a signal saves one in any case.")
    dataloader_drop_last: bool = option(False, "Leave out the last rows of an epoch if they do not fill a batch.")
    dataloader_num_workers: int = option(
        0, "Processes that make batches; 0, the training process itself, is fast enough."
    )
