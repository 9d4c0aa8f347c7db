"""Bad input to fine-tuning: one sentence, a status that is not 0, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning_samples import finetuned, flags, squad_articles, write, write_sst2
from safetensors.torch import load_file, save_file

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments

Refused = Callable[..., str]


@pytest.fixture
def refused(glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], distilbert: Path) -> Refused:
    """Run the verb, which must fail; return its one line, having made sure that nothing was written."""

    def run(status: int = 1, **options: Any) -> str:
        args = {"model": distilbert, "task": "sst2", "task_data": glue, "output_dir": tmp_path / "out"} | options
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        assert main(flags(**args)) == status
        printed = capsys.readouterr()
        assert printed.err.startswith("potstill finetune: "), printed.err
        assert printed.err.count("\n") == 1, printed.err
        assert printed.out == ""
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return run


def test_options(refused: Refused, tmp_path: Path, distilbert: Path) -> None:
    assert "no task 'sst3'; the tasks are cola, mnli, " in refused(task="sst3")
    assert "--task is missing" in refused(status=2, task=None)
    assert "--model is missing" in refused(model=None)
    assert "--output_dir is missing" in refused(status=2, output_dir=None)
    assert "invalid choice: 'some'" in refused(status=2, soft_positions="some")
    assert "--temperature is 0.0: it must be above 0" in refused(temperature=0)
    assert "invalid choice: 'l1'" in refused(status=2, soft_loss="l1")
    assert "has no meaning with --soft_loss mse: leave it out" in refused(soft_loss="mse", temperature=3)
    for name, value in {
        "temperature": 4,
        "alpha_ce": 1,
        "alpha_task": 1,
        "alpha_cos": 1,
        "soft_loss": "mse",
        "soft_positions": "all",
    }.items():
        message = refused(**{name: value})
        assert f"--{name} is {value!r}: it has no effect without --teacher" in message.replace(".0:", ":")
    assert "--soft_positions is 'all': it is no option of sst2" in refused(teacher=distilbert, soft_positions="all")
    assert "--stride is 5: it is no option of sst2" in refused(stride=5)
    assert "--alpha_cos is -1.0" in refused(alpha_cos=-1)
    assert "--stride is -1" in refused(stride=-1)
    assert "--max_train_samples is 0" in refused(max_train_samples=0)
    assert "does not go with --alpha_cos" in refused(freeze_encoder=True, alpha_cos=1)
    assert "--max_length is 200, but the model" in refused(max_length=200)
    assert "reads at most 128 tokens: lower it" in refused(max_length=200)
    assert "--max_length is 3, and 2 of these are special tokens: it must be at least 4" in refused(max_length=3)
    assert "leaves nothing of 30 rows" in refused(dataloader_drop_last=True, per_device_train_batch_size=50)
    assert "there is no checkpoint in" in refused(resume_from_checkpoint="true")
    write(tmp_path / "full" / "file", "")
    assert "is not empty: name another folder, or give --overwrite_output_dir" in refused(output_dir=tmp_path / "full")


def test_the_model_is_not_overwritten(refused: Refused, distilbert: Path, bert: Path) -> None:
    for name, model in (("model", distilbert), ("teacher", bert)):
        said = refused(output_dir=f"{model}/../{model.name}", overwrite_output_dir=True, teacher=bert)
        assert f"is the folder of --{name}, which would be lost" in said


def test_data(refused: Refused, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert "is not a folder" in refused(task_data=data)
    write_sst2(data)
    assert f"{data} has no data of RTE" in refused(task="rte", task_data=data)
    file = data / "SST-2" / "train.tsv"
    write(file, "sentence\tlabel\nbo\t1\ndo\t3\n")
    assert f"{file}, row 3: the label is '3', but SST-2 has 0, 1" in refused(task_data=data)
    write(file, "sentence\tlabel\nbo\t1\ndo\n")
    assert f"{file}, line 3, has 1 column but needs 2" in refused(task_data=data)
    write(file, "sentence\tlabel\n")
    assert "The train set of SST-2 is empty" in refused(task_data=data)
    write_sst2(data)
    write(data / "SST-2" / "dev.tsv", "sentence\tlabel\n")
    assert "The dev set of SST-2 is empty" in refused(task_data=data)


def test_bad_rows_stop_the_run_or_are_left_out_and_recorded(
    refused: Refused, tmp_path: Path, distilbert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    write_sst2(data, train=12, dev=6)
    for split, broken in (("train", "bol\nkim\t1\nlum\t9\n\n"), ("dev", "kim\t1\t0\n")):
        file = data / "SST-2" / f"{split}.tsv"
        write(file, file.read_text() + broken)
    assert "train.tsv, line 14, has 1 column but needs 2" in refused(task_data=data)
    assert refused(task_data=data).endswith("or leave such rows out with --on_bad_rows skip.\n")
    assert "--on_bad_rows is 'maybe'" in refused_by_value("maybe")
    options: dict[str, Any] = {"model": distilbert, "task": "sst2", "task_data": data, "max_steps": 1}
    found = finetuned(**options, output_dir=tmp_path / "out", on_bad_rows="skip")
    assert found["rows"] == {"train": 13, "dev": 6}
    assert found["bad_rows"] == {"train": 2, "dev": 1}
    printed = capsys.readouterr()
    assert "train.tsv: 2 bad rows are left out." in printed.err
    assert "\nbad rows left out: 2 of train, 1 of dev\n" in printed.out


def refused_by_value(value: Any) -> str:
    with pytest.raises(PotstillError) as caught:
        FinetuneArguments(output_dir="-", on_bad_rows=value)
    return str(caught.value)


def test_questions(refused: Refused, tmp_path: Path, squad: Path, new_model: Any) -> None:
    assert "There is no file or folder" in refused(task="squad", task_data=tmp_path / "data.json")
    assert "has no train-v1.1.json" in refused(task="squad", task_data=tmp_path)
    assert "give --task squad_v2" in refused(task="squad", task_data=squad / "train-v2.0.json")
    assert "leave -19 for the context" in refused(task="squad", task_data=squad, max_length=48)
    assert "does not begin a pair of texts with [CLS]" in refused(
        task="squad", task_data=squad, model=new_model("gpt2")
    )


def test_answers_that_are_not_where_they_should_be(refused: Refused, tmp_path: Path, distilbert: Path) -> None:
    articles = squad_articles("it", 3)
    for article, question in ((0, 1), (2, 0)):
        articles[article]["paragraphs"][0]["qas"][question]["answers"][0]["answer_start"] += 1
    write(tmp_path / "it.json", json.dumps({"version": "1.1", "data": articles}))
    options: dict[str, Any] = {"task": "squad", "task_data": tmp_path / "it.json"}
    message = refused(**options)
    assert "2 answers are not in their context at answer_start, the first one at question 'it-0-1'" in message
    assert "--on_bad_answer skip" in message
    found = finetuned(
        **options, model=distilbert, output_dir=tmp_path / "out", on_bad_answer="skip", num_train_epochs=1
    )
    assert found["bad_answers"] == 2
    assert sum(found["rows"].values()) == 7


def test_models(refused: Refused, distilbert: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(model=tmp_path / "model")
    copies = iter(range(100))

    def changed(change: Callable[[Path], object]) -> str:
        place = tmp_path / f"model-{next(copies)}"
        shutil.copytree(distilbert, place)
        change(place)
        return refused(model=place)

    def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
        def rewrite(place: Path) -> None:
            found = load_file(place / "model.safetensors")
            change(found)
            save_file(found, place / "model.safetensors", {"format": "pt"})

        return rewrite

    def config(**values: Any) -> Callable[[Path], None]:
        def rewrite(place: Path) -> None:
            before = json.loads((place / "config.json").read_text())
            (place / "config.json").write_text(json.dumps(before | values))

        return rewrite

    def pickled(place: Path) -> None:
        torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()

    def no_tokenizer(place: Path) -> None:
        for file in place.glob("*tok*"):
            file.unlink()

    layer = "distilbert.transformer.layer.1.ffn.lin1.bias"
    assert "has no config.json" in changed(lambda place: (place / "config.json").unlink())
    assert "has no weights" in changed(lambda place: (place / "model.safetensors").unlink())
    assert "has only pickled weights" in changed(pickled)
    assert "has no tokenizer: put its tokenizer.json and" in changed(no_tokenizer)
    assert "cannot be loaded" in changed(lambda place: (place / "model.safetensors").write_bytes(b"no"))
    assert f"1 tensor of its encoder is not in its files, for example {layer}" in changed(
        tensors(lambda found: found.pop(layer))
    )
    assert "do not fit its config" in changed(tensors(lambda found: found.update({layer: torch.zeros(5)})))
    assert "which has no place for distilbert.transformer.layer.1." in changed(config(n_layers=1))
    assert "asks for code of its own" in changed(config(auto_map={"AutoModel": "code.Model"}))
    assert "knows 20 tokens, but its tokenizer gives the id" in changed(config(vocab_size=20))


def test_a_loss_that_is_no_number(
    glue: Path, distilbert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"model": distilbert, "task": "sst2", "task_data": glue, "output_dir": tmp_path / "out"}
    status = main(flags(**options, learning_rate=1e30, max_grad_norm=0))
    assert status == 1
    assert "is not a finite number, so training stopped" in capsys.readouterr().err.splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


def test_other_models_of_the_output_are_kept_until_there_is_a_new_one(
    refused: Refused, glue: Path, distilbert: Path, tmp_path: Path
) -> None:
    finetuned(model=distilbert, task="sst2", task_data=glue, output_dir=tmp_path / "out", max_steps=1)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    refused(overwrite_output_dir=True, task_data=tmp_path / "nowhere")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    finetuned(
        model=distilbert,
        task="sst2",
        task_data=glue,
        output_dir=tmp_path / "out",
        overwrite_output_dir=True,
        max_steps=2,
    )
    assert (tmp_path / "out" / "model.safetensors").read_bytes() != before
