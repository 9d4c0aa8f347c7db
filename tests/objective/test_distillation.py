"""The triple loss against a float64 version written here with NumPy, forward and gradients, on fresh random inputs."""

import numpy as np
import pytest
import torch

from potstill.errors import PotstillError
from potstill.objective import DistillationObjective, Encoded
from potstill.student import VocabularyHead

B, L, K, H, V = 3, 7, 2, 5, 11
DISTILBERT = {"alpha_ce": 5.0, "alpha_mlm": 2.0, "alpha_cos": 1.0, "temperature": 2.0, "soft_targets": "all"}


@pytest.fixture
def batch():
    generator = np.random.default_rng(np.random.randint(2**31))
    tensors = {
        "student_hidden": generator.normal(size=(B, L, H)),
        "teacher_hidden": generator.normal(size=(B, L, H)),
        "student_weight": generator.normal(size=(V, H)),
        "student_bias": generator.normal(size=V),
        "teacher_weight": generator.normal(size=(V, H)),
        "teacher_bias": generator.normal(size=V),
        "student_dense": generator.normal(size=(H, H)),
        "teacher_dense": generator.normal(size=(H, H)),
    }
    positions = np.stack([np.sort(generator.choice(L, K, replace=False)) for _ in range(B)])
    labels = generator.integers(0, V, size=(B, K))
    return tensors, positions, labels


def predictions(tensors, role):
    dense = tensors[f"{role}_dense"]
    head = VocabularyHead(lambda hidden: torch.tanh(hidden @ dense), tensors[f"{role}_weight"], tensors[f"{role}_bias"])
    return Encoded({-1: tensors[f"{role}_hidden"]}, {}, head)


def run(objective, batch, dtype=torch.float64):
    tensors, positions, labels = batch
    tensors = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in tensors.items()}
    student, teacher = predictions(tensors, "student"), predictions(tensors, "teacher")
    losses = objective(student, [teacher], torch.tensor(positions), torch.tensor(labels))
    losses["loss"].backward()
    return losses, {name: tensor.grad for name, tensor in tensors.items()}


def naive(tensors, positions, labels, alpha_ce, alpha_mlm, alpha_cos, temperature, soft_targets):
    """The losses by loops over tokens, in float64."""

    def log_softmax(x):
        x = x - x.max()
        return x - np.log(np.exp(x).sum())

    def logits(role, b, token):
        hidden = np.tanh(tensors[f"{role}_hidden"][b, token] @ tensors[f"{role}_dense"])
        return tensors[f"{role}_weight"] @ hidden + tensors[f"{role}_bias"]

    kl, cosine, mlm = [], [], []
    for b in range(B):
        for token in range(L):
            s, t = tensors["student_hidden"][b, token], tensors["teacher_hidden"][b, token]
            cosine.append(1 - s @ t / np.sqrt((s @ s) * (t @ t)))
            if soft_targets == "all" or (token in positions[b] and labels[b][list(positions[b]).index(token)] >= 0):
                p = log_softmax(logits("teacher", b, token) / temperature)
                q = log_softmax(logits("student", b, token) / temperature)
                kl.append((np.exp(p) * (p - q)).sum())
        for position, label in zip(positions[b], labels[b], strict=True):
            if label >= 0:
                mlm.append(-log_softmax(logits("student", b, position))[label])
    ce = np.sum(kl) / (B * L if soft_targets == "all" else B * K) * temperature**2
    return alpha_ce * ce + alpha_mlm * np.sum(mlm) / (B * K) + alpha_cos * np.mean(cosine)


CASES = [
    {},
    {"soft_targets": "masked"},
    {"temperature": 1.0},
    {"temperature": 3.5, "alpha_ce": 0.3, "alpha_mlm": 0.7, "alpha_cos": 0.0},
    {"alpha_ce": 0.0},
    {"alpha_mlm": 0.0},
    {"alpha_mlm": 0.0, "alpha_cos": 0.0, "soft_targets": "masked"},
    {"alpha_ce": 0.0, "alpha_cos": 0.0},
    {"alpha_ce": 0.0, "alpha_mlm": 0.0},
]


@pytest.mark.parametrize("ignored", [False, True], ids=["all labels", "one ignored"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_loss_and_gradients_equal_the_naive_ones(batch, options, ignored):
    objective = DistillationObjective(**options)
    tensors, positions, labels = batch
    if ignored:
        labels = labels.copy()
        labels[1, 0] = -100
    losses, gradients = run(objective, (tensors, positions, labels))
    parameters = {**DISTILBERT, **options}
    np.testing.assert_allclose(losses["loss"].item(), naive(tensors, positions, labels, **parameters), rtol=1e-12)

    for name in ("student_hidden", "student_weight", "student_bias", "student_dense"):
        expected = np.zeros_like(tensors[name])
        for index in np.ndindex(expected.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = {**tensors, name: tensors[name].copy()}
                moved[name][index] += step
                values.append(naive(moved, positions, labels, **parameters))
            expected[index] = (values[0] - values[1]) / 2e-6
        found = gradients[name]
        found = np.zeros_like(expected) if found is None else found.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=name)


def test_no_gradient_reaches_the_teachers_head(batch):
    _, gradients = run(DistillationObjective(alpha_cos=0.0), batch)
    assert gradients["teacher_weight"] is None
    assert gradients["teacher_hidden"] is None


def test_half_precision_hidden_states_still_give_a_float32_loss(batch):
    exact, _ = run(DistillationObjective(), batch)
    rough, _ = run(DistillationObjective(), batch, torch.bfloat16)
    assert rough["loss"].dtype == torch.float32
    assert abs(rough["loss"].item() - exact["loss"].item()) < 0.1 * exact["loss"].item()


def test_named_terms_are_those_with_a_weight(batch):
    assert set(run(DistillationObjective(), batch)[0]) == {"loss", "ce", "mlm", "cos"}
    assert set(run(DistillationObjective(alpha_ce=0, alpha_cos=0), batch)[0]) == {"loss", "mlm"}


def test_work_of_weight_zero_is_not_done(batch):
    tensors, positions, labels = batch
    tensors = {name: torch.tensor(value) for name, value in tensors.items()}
    rows = {"student": [], "teacher": []}

    def counting(role):
        found = predictions(tensors, role)
        head = found.head

        def transform(hidden):
            rows[role].append(hidden.shape[:-1].numel())
            return head.transform(hidden)

        return Encoded(found.hidden, {}, VocabularyHead(transform, head.weight, head.bias))

    def logits_computed(**options):
        rows["student"].clear()
        rows["teacher"].clear()
        DistillationObjective(**options)(
            counting("student"), [counting("teacher")], torch.tensor(positions), torch.tensor(labels)
        )
        return sum(rows["student"]), sum(rows["teacher"])

    assert logits_computed() == (B * L, B * L)
    assert logits_computed(soft_targets="masked") == (B * K, B * K)
    assert logits_computed(alpha_ce=0) == (B * K, 0)
    assert logits_computed(alpha_ce=0, alpha_mlm=0) == (0, 0)


def test_the_mean_of_micro_batches_is_the_loss_of_the_batch(batch):
    tensors, positions, labels = batch
    labels = labels.copy()
    labels[0, 1] = -100  # a block with fewer labels than the others must not weigh more
    for options in ({}, {"soft_targets": "masked"}):
        whole, _ = run(DistillationObjective(**options), (tensors, positions, labels))
        parts = []
        for b in range(B):
            part = {n: v[b : b + 1] if n.endswith("hidden") else v for n, v in tensors.items()}
            losses, _ = run(DistillationObjective(**options), (part, positions[b : b + 1], labels[b : b + 1]))
            parts.append(losses["loss"].item())
        np.testing.assert_allclose(np.mean(parts), whole["loss"].item(), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha_ce": -1.0}, "alpha_ce"),
        ({"alpha_mlm": float("nan")}, "alpha_mlm"),
        ({"alpha_cos": float("inf")}, "alpha_cos"),
        ({"alpha_ce": 0, "alpha_mlm": 0, "alpha_cos": 0}, "nothing to learn"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -2.0}, "temperature"),
        ({"soft_targets": "some"}, "soft_targets"),
    ],
)
def test_impossible_options_are_named(options, named):
    with pytest.raises(PotstillError, match=named):
        DistillationObjective(**options)
