"""Runs the stages of `finetune --stages`: skips finished ones, resumes an interrupted one, and writes the result."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from potstill.arguments import RECIPE, as_recipe, recipe_values
from potstill.bilstm.config import BiLSTMConfig
from potstill.corpus import Corpus, load_tokenizer
from potstill.errors import PotstillError
from potstill.files import check_output_dir, complete_folder, recover_folder, write_text
from potstill.finetuning.data import load_data
from potstill.finetuning.finetune import Finetuned
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import InputReader, unlabelled_texts
from potstill.finetuning.model_source import model_source
from potstill.finetuning.models import load_config, load_task_teacher
from potstill.finetuning.predict import fingerprint
from potstill.finetuning.result import RESULTS, RunResult
from potstill.finetuning.stages import INITIAL, ORDER, Stage, new_model_options, planned_stages
from potstill.json_files import json_text, read_object
from potstill.live_line import say
from potstill.locks import locked
from potstill.recipe import PretrainingArguments
from potstill.report.task_card import task_card
from potstill.student import takes_token_types
from potstill.student.model_files import model_folder
from potstill.student.pruned import is_pruned
from potstill.student.quiet import quiet_loading
from potstill.training.checkpoints import last_checkpoint
from potstill.training.compatibility import check_launch
from potstill.training.control import TrainingInterrupted
from potstill.training.hub import make_repository, upload
from potstill.training.output import atomic_output
from potstill.training.pretrain import ends, initial_model
from potstill.training.run_record import RunRecord, model_fingerprint, own_defaults

RECORD = "stages.json"
"""In the output folder: the stages that were begun, whether each is finished, and what it was run with."""

FORMAT = 1


def finetune_in_stages(args: FinetuneArguments) -> Finetuned:
    """Run the stages of `args.stages` one after the other, each from the model of the one before.

    Each stage is a run of its own in `1-pretrain`, `2-distill`, ... in the output folder. The model of the last stage,
    its results and a card are written into the output folder itself. If the command is repeated, finished stages are
    skipped, and an interrupted one goes on from its last checkpoint.

    Args:
        args: `stages`, `task`, `output_dir`, and what the stages need.

    Raises:
        PotstillError: bad input, which is reported before anything is trained.
        TrainingInterrupted: a signal ended a stage; the same command continues it.
    """
    check_launch(args)
    stages = planned_stages(args)
    folder = Path(args.output_dir or "").expanduser()
    with locked(folder, break_lock=args.break_lock):
        with args.main_process_first(local=False, desc="stages"):
            progress = Progress.open(folder, stages, args.overwrite_output_dir)
            found = [_contents(stage) for stage in stages]
            progress.check(stages, found)
        repository = make_repository(args)
        if args.overwrite_output_dir and args.should_save:
            progress.remove_all()
        if args.shape is not None and stages[0].name != "pretrain":
            _write_initial(args, folder / INITIAL)
        for number, (stage, contents) in enumerate(zip(stages, found, strict=True), 1):
            if progress.is_finished(stage):
                _say(args, f"{stage.folder.name}: already finished")
                continue
            _say(args, f"{stage.folder.name}: stage {number} of {len(stages)}")
            record = RunRecord.of(stage.args, contents | _model_of(stage))
            with progress.running(stage, record, args.should_save), _interruptions_named(stage):
                stage.verb(stage.args)
                with args.main_process_first(local=False, desc="stages"):  # the others wait for the files of the first
                    pass
        result = _result(args, stages)
        if args.should_save:
            _write(args, stages, result)
        upload(args, repository, folder, [INITIAL, RECORD, *(stage.folder.name for stage in stages)])
    return Finetuned(folder, result.record)


class Progress:
    """The stages of an output folder that were begun or finished, as its `stages.json` says.

    Attributes:
        folder: the output folder.
        entries: name of a stage → `folder`, `finished` and `run`, the fields of its `RunRecord`.
    """

    def __init__(self, folder: Path, entries: dict[str, Any]) -> None:
        self.folder = folder
        self.entries = entries

    @classmethod
    def open(cls, folder: Path, stages: list[Stage], overwrite: bool) -> Progress:
        """Read the progress in a folder.

        Raises:
            PotstillError: the folder holds something else, or other stages, and is not to be overwritten.
        """
        file = folder / RECORD
        check_output_dir(folder, overwrite or file.is_file())
        if not file.is_file():
            return cls(folder, {})
        record = read_object(file, "The record of stages", "name another --output_dir")
        if record.get("format_version") != FORMAT or not isinstance(record.get("stages"), dict):
            raise PotstillError(f"{file} is not of format {FORMAT}: name another --output_dir.")
        for entry in record["stages"].values():
            _check_entry(entry, file)
        progress = cls(folder, record["stages"])
        if overwrite:
            return progress
        begun, names = list(progress.entries), [stage.name for stage in stages]
        if begun != names[: len(begun)]:
            raise PotstillError(
                f"{folder} was begun with the stages {','.join(begun)}, and --stages is now {','.join(names)}: begin "
                "with the same stages, or name another --output_dir."
            )
        for entry in progress.entries.values():
            recover_folder(folder / entry["folder"])
        finished = [progress.is_finished(stage) for stage in stages]
        if False in finished and any(finished[finished.index(False) :]):
            lost, later = stages[finished.index(False)], stages[len(finished) - 1 - finished[::-1].index(True)]
            raise PotstillError(
                f"{lost.folder} has no finished model, but {later.folder} was made from it: delete {later.folder} too, "
                "or name another --output_dir."
            )
        return progress

    def is_finished(self, stage: Stage) -> bool:
        """Return whether a stage is finished and its results are still there."""
        entry = self.entries.get(stage.name)
        return bool(entry and entry["finished"]) and (stage.folder / RESULTS).is_file()

    def check(self, stages: list[Stage], contents: list[dict[str, str]]) -> None:
        """Check that the finished stages were run with these options and contents.

        Raises:
            PotstillError: something differs; the message names it.
        """
        for stage, found in zip(stages, contents, strict=True):
            if not self.is_finished(stage):
                return
            before = RunRecord(**self.entries[stage.name]["run"])
            now = RunRecord.of(stage.args, found | _model_of(stage))
            now.resumed(before, 0, str(stage.folder), own_defaults(type(stage.args)))
            changed = sorted(now.changed_since(before))
            if changed:
                name = changed[0]
                raise PotstillError(
                    f"The stage {stage.name} is finished with --{name} {before.options.get(name)}, which is now "
                    f"{now.options.get(name)}: give the value of before, or name another --output_dir."
                )

    @contextmanager
    def running(self, stage: Stage, record: RunRecord, writes: bool) -> Iterator[None]:
        """Record that a stage is begun, and after the body that it is finished. Let its run resume or start anew."""
        resumes = last_checkpoint(stage.folder) is not None
        stage.args.resume_from_checkpoint = "auto" if resumes else None
        stage.args.overwrite_output_dir = not resumes
        # As JSON gives them back, because they are compared with those of a later command.
        entry = {"folder": stage.folder.name, "finished": False, "run": json.loads(json.dumps(vars(record)))}
        self.entries[stage.name] = entry
        if writes:
            self.save()
        yield
        entry["finished"] = True
        if writes:
            self.save()

    def save(self) -> None:
        """Write `stages.json`."""
        file = self.folder / RECORD
        write_text(file, json_text({"format_version": FORMAT, "stages": self.entries}, str(file)) + "\n")

    def remove_all(self) -> None:
        """Remove all that earlier stages wrote into their folders."""
        for name in [*(entry["folder"] for entry in self.entries.values()), INITIAL]:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.entries = {}
        (self.folder / RECORD).unlink(missing_ok=True)


def _contents(stage: Stage) -> dict[str, str]:
    """Check what a stage reads besides the model of the stage before, and return the fingerprints.

    Raises:
        PotstillError: something is missing or cannot be used.
    """
    args = stage.args
    if isinstance(args, PretrainingArguments):
        return {"corpus": Corpus.open(args.corpus or "").fingerprint}
    assert isinstance(args, FinetuneArguments)
    data = load_data(args)
    found = {"training data": fingerprint({"train": data.train, **data.dev})}
    for number, teacher in enumerate(args.teachers, 1):
        load_task_teacher(teacher, data.head, data.labels, data.shape().get("problem_type"))
        InputReader.of(args, teacher, "teacher")
        role = "teacher" if len(args.teachers) == 1 else f"teacher {number}"
        found[role] = model_fingerprint(model_folder(teacher, "teacher"))
    if args.unlabelled:
        found["unlabelled texts"] = fingerprint({"unlabelled": unlabelled_texts(args, data).rows})
    return found


def _check_entry(entry: Any, file: Path) -> None:
    """Check the record of a stage, which names a folder that may be removed.

    Raises:
        PotstillError: it is damaged.
    """
    kinds = {"folder": str, "finished": bool, "run": dict}
    fits = isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in kinds.items())
    if not fits or Path(entry["folder"]).name != entry["folder"] or not entry["folder"]:
        raise PotstillError(f"{file} is damaged (a stage in it has no folder of its own): name another --output_dir.")


def _model_of(stage: Stage) -> dict[str, str]:
    """Return the fingerprint of the model that a stage starts from."""
    if not isinstance(stage.args, FinetuneArguments):
        return {}
    return {"model": model_fingerprint(model_folder(model_source(stage.args), "model"))}


def _write_initial(args: FinetuneArguments, folder: Path) -> None:
    """Write a new model with random weights and the tokenizer of the teacher, unless it is there."""
    options = new_model_options(args)
    tokenizer = load_tokenizer(args.teachers[0], role="teacher")
    model = initial_model(options, options.num_hidden_layers, len(tokenizer), tokenizer.pad_token_id, *ends(tokenizer))
    _say(args, f"{folder.name}: a new model with random weights and the tokenizer of {args.teachers[0]}")
    with args.main_process_first(local=False, desc="initial model"):
        if args.should_save and not folder.is_dir():
            with complete_folder(folder) as partial, quiet_loading():
                model.save_pretrained(partial)
                load_tokenizer(args.teachers[0], takes_token_types(model.config), "teacher").save_pretrained(partial)


@contextmanager
def _interruptions_named(stage: Stage) -> Iterator[None]:
    try:
        yield
    except TrainingInterrupted as interruption:
        step = interruption.checkpoint.name.rpartition("-")[2]
        interruption.args = (
            f"Interrupted in {stage.folder.name} at step {step}; nothing is lost: repeat the same command to continue.",
        )
        raise


def _result(args: FinetuneArguments, stages: list[Stage]) -> RunResult:
    """Return the result of the last stage, with figures of all stages."""
    last = RunResult.of_folder(stages[-1].folder)
    name = args.shape or Path(args.model or "").name or args.model or "new"
    return dataclasses.replace(last, model=name, stages=[_figures(stage) for stage in stages])


def _figures(stage: Stage) -> dict[str, Any]:
    """Return what a result says of one stage."""
    found: dict[str, Any] = {"stage": stage.name, "folder": stage.folder.name}
    if stage.name == ORDER[0]:
        results = read_object(stage.folder / RESULTS, "The result of a stage", "delete its folder", finite=False)
        cost, held_out = results["cost"], results["held_out"]["final"] or {}
        found |= {name: cost[name] for name in ("steps", "tokens", "seconds")}
        figures = {name: held_out[name] for name in ("loss", "accuracy") if name in held_out}
        return found | {"parameters": results["parameters"], "held_out": figures}
    result = RunResult.of_folder(stage.folder)
    found |= {"steps": result.steps, "seconds": result.seconds["training"], "score": result.score}
    found |= {"learning_rate": result.hyperparameters["learning_rate"], "rows": result.rows["train"]}
    if result.teacher:
        found["teacher"] = result.teacher
    if result.unlabelled:
        found["texts"] = result.unlabelled["texts"]
    return found


def _write(args: FinetuneArguments, stages: list[Stage], result: RunResult) -> None:
    """Write the model of the last stage into the output folder, with the results and the card of all stages."""
    last, own = stages[-1].folder, (RECIPE, RESULTS, "README.md")
    # Only what was given: what follows from it is different for each stage, and stands in its own recipe.
    recipe = {name: value for name, value in recipe_values(args).items() if name in {*args.given, "bilstm"}}
    recipe["stages"] = {stage.name: stage.own for stage in stages}
    with atomic_output(last.parent) as staging:
        for file in sorted(last.iterdir()):
            if file.is_file() and not file.name.startswith(".") and file.name not in own:
                shutil.copy2(file, staging / file.name)
        (staging / RECIPE).write_text(as_recipe("finetune", recipe), encoding="utf-8")
        (staging / RESULTS).write_text(json_text(result.record, RESULTS) + "\n", encoding="utf-8")
        config, values = load_config(str(last)), recipe | {"model": result.model}
        bilstm = config if isinstance(config, BiLSTMConfig) else None
        card = task_card(values, dataclasses.asdict(result), args.declared_task, False, is_pruned(config), bilstm)
        (staging / "README.md").write_text(card, encoding="utf-8")


def _say(args: FinetuneArguments, line: str) -> None:
    if args.should_log:
        say(line)
