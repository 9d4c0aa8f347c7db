"""mteb runs its tasks on the folder of a sentence encoder. The data are made here and do not come from the hub."""

from pathlib import Path
from typing import Any

import pytest
from samples import written_text

from potstill.evaluation.scorers import Scorer
from potstill.tasks.sts import read_sts

mteb = pytest.importorskip("mteb")


@pytest.mark.usefixtures("no_hub")
def test_the_score_of_sts_is_the_same(pooled_encoder: Path, tmp_path: Path) -> None:
    import datasets
    from sentence_transformers import SentenceTransformer

    lines = [" ".join(line.split()[:8]) for line in written_text(60, seed=3).splitlines()]
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    scores = [float(number * 7 % 11) / 2 for number in range(len(pairs))]

    class Local(mteb.abstasks.AbsTaskSTS):  # type: ignore[misc, name-defined]
        metadata = mteb.get_task("STS15").metadata
        min_score, max_score = 0, 5

        def load_data(self, **_: Any) -> None:
            columns = {"score": scores, "sentence1": [a for a, _ in pairs], "sentence2": [b for _, b in pairs]}
            self.dataset = datasets.DatasetDict(test=datasets.Dataset.from_dict(columns))
            self.data_loaded = True

    model = SentenceTransformer(str(pooled_encoder), device="cpu")
    (result,) = mteb.evaluate(model, [Local()], cache=None, co2_tracker=False).task_results

    file = tmp_path / "pairs.tsv"
    file.write_text("".join(f"{score}\t{a}\t{b}\n" for score, (a, b) in zip(scores, pairs, strict=True)))
    (ours,) = read_sts([file], None, "stop")
    expected = ours.score(Scorer(str(pooled_encoder), None, 8))["spearman"]
    assert abs(expected) > 1
    assert 100 * result.get_score() == pytest.approx(expected, abs=0.01)
