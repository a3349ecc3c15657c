"""What all tests share: no hub, and one tiny model per session."""

import gc
import json
import os

# A test that needs the network is a bug; without this, loading a folder may wait for the hub's timeouts first.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# Ray's: processes that it starts in advance fit no run of verl's, which have an environment of their own
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest  # noqa: E402
from benchmark_folder import benchmark  # noqa: E402, F401  (a fixture)
from collected_incidents import write_collection  # noqa: E402
from tiny import make_tiny_model, make_tokenizer  # noqa: E402

# folders of tests that compute in processes of their own
LONG = ("worker", "with_trl")


def pytest_collection_modifyitems(items):
    """Files with the longest tests come first, those that start Ray before those that start worker processes: one of
    them at the end would be alone on the machine."""
    with_ray = {item.path for item in items if item.get_closest_marker("e2e")}
    items.sort(key=lambda item: 0 if item.path in with_ray else 1 if item.path.parent.name in LONG else 2)


def pytest_collection_finish():
    """What torch, verl and the tests' modules made stays: looking through it for garbage took a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_their_own(tmp_path_factory):
    """Tests neither read nor fill the user's cache."""
    os.environ["VERL_AIOPS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory):
    """Folder of a random float32 Llama with its tokenizer (see tiny.py). Shared by all tests: read, never write."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def tokenizer(_shared_tokenizer):
    """The tiny model's tokenizer, a fresh copy for each test: a test may change its template or tokens."""
    import copy

    return copy.deepcopy(_shared_tokenizer)


@pytest.fixture(scope="session")
def _shared_tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def collected(tmp_path_factory):
    """518 incidents of kinds that the simulator does not make, in a file (see collected_incidents.py). Read only."""
    return write_collection(tmp_path_factory.mktemp("collected"))


@pytest.fixture
def write_rows(tmp_path):
    """Function (rows, name="pairs.jsonl") -> str: writes dicts as JSON lines or parquet, by the name's suffix."""

    def write(rows, name="pairs.jsonl"):
        path = tmp_path / name
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
