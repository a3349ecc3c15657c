"""Which model `verl-aiops eval` asks, the same of both tasks: options of a server and of a folder do not mix."""

import pytest

from verl_aiops.cli.asked_model import endpoint_of
from verl_aiops.cli.main import make_parser
from verl_aiops.evaluation.errors import EvaluationError


def endpoint(*options):
    return endpoint_of(make_parser().parse_args(["eval", "--model", "m", "--out", "o", *options]))


def test_without_a_server_the_model_is_a_folder():
    assert endpoint() is None
    assert endpoint("--dtype", "bfloat16") is None
    with pytest.raises(EvaluationError, match="--api-key-env goes with --endpoint"):
        endpoint("--api-key-env", "KEY")
    with pytest.raises(EvaluationError, match="--schema goes with --endpoint"):
        endpoint("--schema")


def test_a_server_has_a_dtype_of_its_own():
    asked = endpoint("--endpoint", "http://host:1/v1", "--timeout", "3", "--schema")
    assert (asked.chat_url, asked.model) == ("http://host:1/v1/chat/completions", "m")
    assert (asked.timeout_s, asked.schema) == (3.0, True)
    with pytest.raises(EvaluationError, match="--dtype belongs to a local model"):
        endpoint("--endpoint", "http://host:1/v1", "--dtype", "float32")
