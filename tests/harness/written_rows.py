"""The rows of a file that a command wrote."""

import json
from pathlib import Path

import pyarrow.parquet as pq


def rows_in(path):
    path = Path(path)
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    # not splitlines: a model may write U+2028 and its like, which end a line for it and stand in JSON as they are
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
