"""What holds for each family, and for models of the generic path, from the teacher to the exported student."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families_samples import CONFIGS, GENERIC, LENGTH, SAMPLES, random_model
from samples import BLOCK_SIZE
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from potstill import DistillationArguments, DistillationTrainer, prepare
from potstill.corpus import Corpus
from potstill.export.export import export
from potstill.export.runtime import ExportedFolder
from potstill.student import Reads, build_student, family_of, load_masked_lm, takes_token_types, usable_length
from potstill.student.byte_level import ByteLevel
from potstill.student.family import FAMILIES, new_model_family, new_tokenizer_kind
from potstill.training.graphs import Graphed
from potstill.training.predictor import Predictor

LAYERS = {"modernbert": [0, 3]}
"""The layers that a student copies, where a family has no student of layers 3 and 0."""

FROM_BERT = {
    r"^distilbert\.embeddings": "bert.embeddings",
    r"^distilbert\.transformer": "bert.encoder",
    "q_lin": "self.query",
    "k_lin": "self.key",
    "v_lin": "self.value",
    "out_lin": "output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    r"ffn\.lin1": "intermediate.dense",
    r"ffn\.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
    "^vocab_transform": "cls.predictions.transform.dense",
    "^vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "^vocab_projector": "cls.predictions.decoder",
}
"""Names in a DistilBERT → names in the BERT that is its teacher. All other students have their teacher's names."""

Run = Callable[..., DistillationTrainer]


SAME_CODE = ("xlm-roberta", "camembert", *list(GENERIC)[1:])
"""Families that run the code of another one in this list: the long suite tests them."""

PARAMS = [pytest.param(name, marks=pytest.mark.slow if name in SAME_CODE else ()) for name in (*CONFIGS, *GENERIC)]

TRANSLATED_ALIKE = ("distilbert", "roberta", "electra", "mpnet")
"""Families whose exports go the way of BERT's or DeBERTa's, since the same classes and attention are translated: the
long suite exports them. `tests/export/test_module.py` compares the modules that are translated with the models."""

EXPORTED = [
    pytest.param(name, marks=pytest.mark.slow if name in (*SAME_CODE, *TRANSLATED_ALIKE) else ())
    for name in (*CONFIGS, *GENERIC)
]


@pytest.fixture(params=PARAMS, scope="module")
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


def ids(rows: int = 5) -> torch.Tensor:
    """(rows, 19) token ids without special ones."""
    return torch.randint(5, 101, (rows, LENGTH), generator=torch.Generator().manual_seed(3))


def test_every_family_has_a_config_here() -> None:
    assert list(CONFIGS) == [family.model_type for family in FAMILIES]


def test_every_tensor_of_the_student_is_the_teachers(model_type: str) -> None:
    teacher = random_model(SAMPLES[model_type]())
    layers = LAYERS.get(model_type, [3, 0])
    student = build_student(teacher, layers=layers, fold_token_types=False)
    theirs, prefix = teacher.state_dict(), family_of(teacher).prefix_in(teacher)
    copied = set()
    for name, tensor in student.state_dict().items():
        original = name
        if type(student) is not type(teacher):
            for pattern, old in FROM_BERT.items():
                original = re.sub(pattern, old, original)
        if original.startswith(prefix):
            number, _, rest = original.removeprefix(prefix).partition(".")
            original = f"{prefix}{layers[int(number)]}.{rest}"
        assert torch.equal(tensor, theirs[original]), (name, original)
        copied.add(original)
    left = {name for name in theirs if name not in copied and not re.search(rf"{re.escape(prefix)}[12]\.", name)}
    assert left <= {"bert.embeddings.token_type_embeddings.weight", "cls.predictions.bias"}  # the latter tied


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_of_all_layers_gives_the_teachers_logits(model_type: str, tied: bool) -> None:
    teacher = random_model(SAMPLES[model_type](tie_word_embeddings=tied), torch.float64)
    student = build_student(teacher, layers=range(4))
    difference = (student(ids()).logits - teacher(ids()).logits).abs().max()
    if type(student) is type(teacher):
        assert difference == 0
    else:  # segment 0 was added to the positions beforehand
        assert difference < 1e-12


def test_a_model_reads_so_many_tokens_and_no_more(model_type: str) -> None:
    model = random_model(SAMPLES[model_type]())
    length = usable_length(model.config)
    assert length == LENGTH
    assert model(torch.full((1, length), 7)).logits.shape == (1, length, 101)
    if not any("position_embeddings" in name for name, _ in model.named_parameters()):
        return  # positions that are computed do not end
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, length + 1), 7))


def test_what_an_export_computes_of_a_layer_is_what_the_layer_computes(model_type: str) -> None:
    model = random_model(SAMPLES[model_type](), torch.float64)
    family = family_of(model)
    if not family.exports_plainly:
        pytest.skip("its exports have the attention of its own forward pass")
    hidden = family.embed(model, ids())
    layer = family.layers(model)[0]
    whole, first = family.attention_inputs(layer, hidden), family.attention_inputs(layer, hidden, asking=hidden[:, :1])
    torch.testing.assert_close(first.query, whole.query[:, :1])
    assert torch.equal(first.key, whole.key)
    query, key, value = (
        tensor.unflatten(-1, (whole.heads, -1)).transpose(1, 2) for tensor in (whole.query, whole.key, whole.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(family.after_attention(layer, mixed, hidden), layer(hidden), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_copies_in_16_bits_compute_the_same_with_gradients_for_all(model_type: str, tied: bool) -> None:
    model = random_model(SAMPLES[model_type](tie_word_embeddings=tied))
    predict = Predictor(model, Reads("all", {1}))
    weights = torch.randn(5, LENGTH, 101, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype in (torch.bfloat16, None):
        found = predict(ids(), dtype)
        assert {hidden.dtype for hidden in found.hidden.values()} == {dtype or torch.float32}
        head = found.head
        logits = head.transform(found.last).float() @ head.weight.T
        model.zero_grad()
        (logits * weights).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([found.hidden[1].float(), logits.detach(), torch.cat([g.flatten() for g in gradients])])
    for rounded, exact in zip(*results, strict=True):
        assert (rounded - exact).norm() < 0.1 * exact.norm()


class _Operations(TorchDispatchMode):
    """Notes what torch computes, and what it copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.moves: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        self.names.add(name)
        devices = {value.device for value in (*args, result) if isinstance(value, torch.Tensor)}
        if "copy" in name and len(devices) > 1:
            self.moves.add(name)
        return result


def test_encoding_never_waits_for_the_device(model_type: str) -> None:
    model = random_model(SAMPLES[model_type]())
    if family_of(model).encodes_whole:
        pytest.skip("it may wait in its own forward pass, and then runs without CUDA graphs")
    with _Operations() as operations:
        family_of(model).encode(model, ids())
    assert "embedding" in operations.names
    assert not operations.names & {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal"}
    elsewhere, there = model.to("meta"), ids().to("meta")  # a device that is not the CPU
    with _Operations() as operations:
        family_of(model).encode(elsewhere, there)
    assert not operations.moves


def test_copies_to_a_device_are_noted() -> None:
    with _Operations() as operations:
        torch.tensor(3).type_as(torch.empty(2, device="meta"))
    assert operations.moves == {"_to_copy"}


@pytest.mark.gpu
def test_encoding_is_the_same_when_it_is_recorded(model_type: str) -> None:
    model = random_model(SAMPLES[model_type]()).cuda()
    recorded = not family_of(model).encodes_whole
    graphed = Graphed(lambda input_ids: {"hidden": family_of(model).encode(model, input_ids).last})
    with torch.no_grad():
        for rows in (ids().cuda(), ids().flip(0).cuda(), ids().flip(1).cuda()):
            torch.testing.assert_close(graphed(rows)["hidden"], family_of(model).encode(model, rows).last)
    assert graphed.graphs or not recorded


@pytest.fixture(scope="module")
def teacher_folder(model_type: str, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp(model_type) / "teacher"
    tokenizer = _tokenizer(model_type, text_path)
    model = random_model(SAMPLES[model_type](vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id))
    model.save_pretrained(folder)
    if not takes_token_types(model.config):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(model_type: str, text: Path) -> PreTrainedTokenizerFast:
    """The kind that a new model of the family gets; of BERT's, RoBERTa's or GPT-2's where there are no new ones."""
    config = SAMPLES[model_type]()
    near = "gpt2" if family_of(config).causal else "roberta" if config.pad_token_id == 1 else "bert"
    kind = family_of(config).tokenizer or new_tokenizer_kind(near)
    size = 300 if isinstance(kind, ByteLevel) else 120
    return kind.train(lambda: text.read_bytes().splitlines(), size, None, LENGTH)


@pytest.fixture(scope="module")
def corpus_folder(teacher_folder: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "blocks"
    text = str(text_path)
    prepare([text], str(folder), str(teacher_folder), BLOCK_SIZE, validation_fraction=0.2, num_proc=1)
    return folder


@pytest.fixture(scope="module")
def run(teacher_folder: Path, corpus_folder: Path) -> Iterator[Run]:
    def distil(output_dir: Path, checkpoint: Path | None = None) -> DistillationTrainer:
        teacher = load_masked_lm(teacher_folder)
        args = DistillationArguments(
            output_dir=str(output_dir),
            max_steps=20,
            save_steps=10,
            per_device_train_batch_size=8,
            learning_rate=3e-3,
            logging_steps=1,
            eval_strategy="no",
            eval_on_start=False,
            report_to="none",
            use_cpu=True,
        )
        trainer = DistillationTrainer(build_student(teacher), str(corpus_folder), args, teacher)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    return distil


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> DistillationTrainer:
    trainer = run(tmp_path_factory.mktemp("run") / "student")
    trainer.save_model()
    return trainer


@pytest.fixture(scope="module")
def student(trained: DistillationTrainer) -> PreTrainedModel:
    return trained.student.eval()


def test_twenty_steps_lower_the_loss(trained: DistillationTrainer) -> None:
    losses = [entry["loss"] for entry in trained.state.log_history if "loss" in entry]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_it_resumes_to_the_same_weights(trained: DistillationTrainer, run: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "student" / "checkpoint-10"
    shutil.copytree(Path(trained.args.output_dir) / "checkpoint-10", checkpoint)
    resumed = run(tmp_path / "student", checkpoint).student.state_dict()
    for name, tensor in trained.student.state_dict().items():
        assert torch.equal(resumed[name], tensor), name


def test_it_loads_anywhere(trained: DistillationTrainer, student: PreTrainedModel, corpus_folder: Path) -> None:
    folder = trained.args.output_dir
    loaded = family_of(student).auto_class.from_pretrained(folder)
    assert type(loaded) is type(student)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    Corpus.open(corpus_folder).check_tokenizer(tokenizer, "the student")
    assert ("token_type_ids" in tokenizer.model_input_names) == takes_token_types(student.config)
    read = tokenizer("bol dol kil lul.", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**read).logits, student(**read).logits)


@pytest.mark.parametrize("model_type", EXPORTED, indirect=True)
def test_an_export_says_what_the_student_says(
    trained: DistillationTrainer, student: PreTrainedModel, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    export(trained.args.output_dir, "onnx", str(tmp_path / "onnx"))
    exported = ExportedFolder.read(tmp_path / "onnx")
    assert exported.max_length == LENGTH
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "onnx")
    read = tokenizer(["bol dol kil lul.", "bo"], padding=True, return_tensors="np")
    logits = exported.open(1).run({name: read[name].astype(np.int64) for name in exported.inputs})["logits"]
    with torch.no_grad():
        expected = student(**{name: torch.from_numpy(read[name]) for name in exported.inputs}).logits.numpy()
    kept = read["attention_mask"] == 1
    np.testing.assert_allclose(logits[kept], expected[kept], atol=1e-4)


def test_a_new_model_reads_what_was_asked_for() -> None:
    for family in FAMILIES:
        if family.tokenizer is not None:
            assert new_model_family(family.model_type) is family
