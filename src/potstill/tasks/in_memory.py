"""Make a `datasets.Dataset` of lists, without the pickling by which `datasets` names what it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable


def dataset_of(columns: Mapping[str, Sequence[Any]], features: datasets.Features | None = None) -> datasets.Dataset:
    """Return the rows of a task as a dataset in memory, as `Dataset.from_dict` does.

    `from_dict` names the dataset by a hash of its pickle. Where the packages are not installed in `site-packages` (with
    `pip install --target`, for example), that pickle takes in all of pyarrow and fails.

    Args:
        columns: values of each column, in order.
        features: types of the columns; as the values are if None.
    """
    schema = None if features is None else features.arrow_schema
    table = InMemoryTable(pa.Table.from_pydict(dict(columns), schema=schema))
    info = datasets.DatasetInfo(features=features or datasets.Features.from_arrow_schema(table.schema))
    return datasets.Dataset(table, info=info, fingerprint=generate_random_fingerprint())
