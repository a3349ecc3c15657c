"""The reward model's server: the last real token's score whatever the batch, and an answer to every request."""

import asyncio
import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_tiny_classifier, make_tokenizer

from verl_aiops.data.scoring import scoring_ids
from verl_aiops.rollout.hf import scorer as hf_scorer
from verl_aiops.rollout.hf.score_model import ScoreModel
from verl_aiops.rollout.hf.scorer import HFScorer
from verl_aiops.rollout.hf.scoring_api import Scored, build_app

PAD = 2  # of the tiny tokenizer, and its end of a turn
POSITIONS = 4096


@pytest.fixture(scope="module")
def rm_dir(tiny_model_dir, tmp_path_factory):
    return make_tiny_classifier(tmp_path_factory.mktemp("rm"), tiny_model_dir)


@pytest.fixture(scope="module")
def one_by_one(rm_dir):
    """transformers' own score of one input: of its last token, where there is no padding nor an id to take for it."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(rm_dir).eval()
    model.config.pad_token_id = None

    @torch.inference_mode()
    def score(ids):
        return model(torch.tensor([list(ids)])).logits.item()

    return score


def make_scorer(folder, tokenizer=None, can_sleep=True, **changes):
    from verl.workers.config import RolloutConfig

    config = RolloutConfig(name="hf", **{"dtype": "float32", "tensor_model_parallel_size": 1, **changes})
    model = SimpleNamespace(
        path=str(folder), local_path=str(folder), trust_remote_code=False, tokenizer=tokenizer or make_tokenizer()
    )
    threads = torch.get_num_threads()
    try:
        return HFScorer(config, model, can_sleep)
    finally:
        torch.set_num_threads(threads)


class Server:
    """A scorer behind its real HTTP server, on an event loop in a thread."""

    def __init__(self, scorer):
        self.scorer = scorer
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        port, self.serving = self.call(self._launch())
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)

    async def _launch(self):
        from verl.workers.rollout.utils import run_uvicorn

        return await run_uvicorn(self.scorer.app, None, "127.0.0.1")

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60)

    def post(self, path="/classify", **payload):
        return self.client.post(path, json=payload)

    def raw(self, asked):
        answer = self.post(input=asked, use_activation=False)
        assert answer.status_code == 200, answer.text
        (row,) = answer.json()["data"]
        return row["probs"][0]

    def at_once(self, *asked):
        """All of them while the server sleeps, so that they share a batch; status and body of each."""
        self.call(self.scorer.sleep())
        with ThreadPoolExecutor(len(asked)) as threads:
            answers = [threads.submit(self.post, input=one, use_activation=False) for one in asked]
            self.call(self._until_all_wait(len(asked)))
            self.call(self.scorer.wake_up())
            return [(answer.result().status_code, answer.result().json()) for answer in answers]

    async def _until_all_wait(self, count):
        # what asyncio itself keeps: who waits for the server to open
        while len(self.scorer.batcher.open._waiters) < count:
            await asyncio.sleep(0.01)

    def close(self):
        self.client.close()
        self.serving.cancel()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout=10)


@pytest.fixture
def serve():
    servers = []

    def start(*args, **changes):
        servers.append(Server(make_scorer(*args, **changes)))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def server(rm_dir):
    server = Server(make_scorer(rm_dir))
    yield server
    server.close()


# --- scores -----------------------------------------------------------------------------------------------------------

# padding's id at the end, in the middle, alone and throughout: none of it is padding
MIXED = [
    [5],
    [PAD],
    [7, 8, 9, PAD],
    [7, 8, 9],
    [11, PAD, PAD, PAD],
    [PAD, PAD, 12],
    list(range(3, 200)),
    [300, 301] * 40 + [PAD],
    [0, 4, 0],
    [0],
]


def test_a_batch_of_mixed_lengths_scores_as_one_by_one(rm_dir, one_by_one):
    scores = ScoreModel(str(rm_dir), torch.float32, "cpu")(MIXED)
    assert scores.dtype == torch.float32 and scores.shape == (len(MIXED),)
    assert scores.tolist() == pytest.approx([one_by_one(ids) for ids in MIXED], abs=1e-5)
    # the scores tell the inputs apart by far more than the tolerance, the padding's id at the end included
    assert len({round(score, 3) for score in scores.tolist()}) == len(MIXED)


def test_concurrent_requests_share_a_batch_and_keep_their_scores(server, one_by_one, monkeypatch):
    widths = []
    score = ScoreModel.__call__
    monkeypatch.setattr(
        ScoreModel, "__call__", lambda self, inputs: widths.append([len(i) for i in inputs]) or score(self, inputs)
    )
    asked = [*MIXED, MIXED[0]]
    answers = server.at_once(*asked)
    assert [status for status, _ in answers] == [200] * len(asked)
    scores = [body["data"][0]["probs"][0] for _, body in answers]
    assert scores == pytest.approx([one_by_one(ids) for ids in asked], abs=1e-5)
    # the input that came twice was computed once
    (batch,) = widths
    assert sorted(batch) == sorted(len(ids) for ids in MIXED)


def test_texts_are_tokenised_as_in_training(server, one_by_one, serve, rm_dir):
    from tokenizers.processors import TemplateProcessing

    text = "<|im_start|>user\nlogs é<|im_end|>\n"
    ids = scoring_ids(make_tokenizer(), text)
    assert ids[0] == 1
    assert server.raw(text) == pytest.approx(one_by_one(ids), abs=1e-5)
    adds_bos = make_tokenizer()
    adds_bos.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    assert serve(rm_dir, adds_bos).raw("logs") == pytest.approx(one_by_one([1, *scoring_ids(make_tokenizer(), "logs")]))


def test_one_request_may_ask_for_several_scores(server, rm_dir, one_by_one):
    answer = server.post(input=["logs", [5, 6], "x"], use_activation=False, model="m").json()
    tokenizer = make_tokenizer()
    ids = [scoring_ids(tokenizer, "logs"), [5, 6], scoring_ids(tokenizer, "x")]
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert [row["num_classes"] for row in answer["data"]] == [1, 1, 1]
    expected = [one_by_one(one) for one in ids]
    assert [row["probs"][0] for row in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert answer["model"] == str(rm_dir)
    tokens = sum(map(len, ids))
    assert answer["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}


def test_embeddings_are_the_raw_score_and_activation_is_a_sigmoid(server, one_by_one):
    ids = [40, 41, 42]
    raw = one_by_one(ids)
    embeddings = server.post("/v1/embeddings", input=ids, model="m", encoding_format="float").json()
    assert embeddings["data"][0]["index"] == 0
    assert embeddings["data"][0]["embedding"] == pytest.approx([raw], abs=1e-5)
    sigmoid = torch.sigmoid(torch.tensor(raw)).item()
    for asked in ({"use_activation": True}, {"use_activation": None}, {}):
        assert server.post(input=ids, **asked).json()["data"][0]["probs"] == pytest.approx([sigmoid], abs=1e-5), asked
    assert server.raw(ids) == pytest.approx(raw, abs=1e-5)


def test_sigmoid_of_any_score_is_a_number():
    from fastapi.testclient import TestClient

    for score, expected in ((1e4, 1.0), (-1e4, 0.0), (0.0, 0.5), (2.0, 0.8807970779778823), (-2.0, 0.1192029220221177)):

        async def scored(asked, score=score):
            return Scored(score, 1)

        client = TestClient(build_app(scored, "m"))
        assert client.post("/classify", json={"input": "x"}).json()["data"][0]["probs"] == pytest.approx([expected])


def test_a_bfloat16_model_gives_float32_scores(rm_dir, one_by_one):
    scores = ScoreModel(str(rm_dir), torch.bfloat16, "cpu")(MIXED)
    assert scores.dtype == torch.float32
    assert (scores != scores.bfloat16().float()).any()
    assert scores.tolist() == pytest.approx([one_by_one(ids) for ids in MIXED], abs=0.1)


def test_an_encoder_scores_its_first_token(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=300,
        num_labels=1,
        initializer_range=0.3,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = [model(torch.tensor([ids])).logits.item() for ids in MIXED]
    assert ScoreModel(str(tmp_path), torch.float32, "cpu")(MIXED).tolist() == pytest.approx(expected, abs=1e-5)


# --- requests that get no score ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, said",
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"1" * 5000, "no JSON"),
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
        (b"{}", "input: expected a text"),
        (b'{"input": null}', "input: expected a text"),
        (b'{"input": NaN}', "input: expected a text"),
        (b'{"input": 3}', "input: expected a text"),
        (b'{"input": []}', "input: expected a text"),
        (b'{"input": {"a": 1}}', "got an object of 1"),
        (b'{"input": ["a", 3]}', "input 1: expected a text"),
        (b'{"input": [[]]}', "input 0: expected a text"),
        (b'{"input": [true]}', "input 0: expected a text"),
        (b'{"input": [1.0]}', "input 0: expected a text"),
        (b'{"input": ""}', "input 0: no tokens"),
        (b'{"input": "\\ud800"}', "half a character at 0"),
        (b'{"input": [512]}', "the model has 0 to 511"),
        (b'{"input": [-1]}', "token ids -1 to -1"),
        (b'{"input": [1, 99999999999999999999999]}', "the model has 0 to 511"),
        (b'{"input": ["ok", [1, 700]]}', "input 1: token ids"),
        (b'{"input": "x", "use_activation": "no"}', "use_activation: expected true or false"),
        (b'{"input": "x", "add_special_tokens": false}', "'add_special_tokens' is not supported"),
        (b'{"input": "x", "\\ud800": 1}', "is not supported"),
        (b'{"input": "x", "encoding_format": "float"}', "is not supported"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server, body, said):
    answer = server.client.post("/classify", content=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert said in error["message"] and error["code"] == 400 and len(error["message"]) < 300


def test_base64_embeddings_are_refused(server):
    answer = server.post("/v1/embeddings", input="x", encoding_format="base64")
    assert answer.status_code == 400 and "only float" in answer.json()["error"]["message"]


async def _score_of_nothing(asked):
    return Scored(0.25, 1)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["input", "model", "a"]), inner),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["/classify", "/v1/embeddings"]),
    st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()),
)
def test_every_body_gets_json_and_no_server_error(client, path, body):
    answer = client.post(path, content=body)
    assert answer.status_code in (200, 400)
    assert ("error" in answer.json()) == (answer.status_code == 400)


@pytest.fixture(scope="module")
def client():
    from fastapi.testclient import TestClient

    return TestClient(build_app(_score_of_nothing, "m"))


def test_the_longest_input_is_scored_and_one_token_more_refused(serve, rm_dir, one_by_one):
    server = serve(rm_dir, max_model_len=50)
    assert server.raw([9] * 50) == pytest.approx(one_by_one([9] * 50), abs=1e-5)
    answer = server.post(input=[9] * 51)
    assert answer.status_code == 400
    assert "51 tokens, but the reward model takes 50" in answer.json()["error"]["message"]


def test_without_a_limit_the_positions_are_it(server):
    assert server.scorer.max_len == POSITIONS
    answer = server.post(input=[9] * (POSITIONS + 1))
    assert answer.status_code == 400 and f"takes {POSITIONS}" in answer.json()["error"]["message"]


def test_a_score_that_is_no_number_fails_its_own_request_only(serve, rm_dir, one_by_one):
    server = serve(rm_dir)
    with torch.no_grad():
        server.scorer.model.model.get_input_embeddings().weight[300] = math.nan
    answers = server.at_once([5, 6], [5, 300], [7] * 20, "text")
    assert [status for status, _ in answers] == [200, 500, 200, 200]
    error = answers[1][1]["error"]
    assert error["message"] == "input 0: the reward model's score of these 2 tokens is nan" and error["code"] == 500
    assert answers[0][1]["data"][0]["probs"] == pytest.approx([one_by_one([5, 6])], abs=1e-5)


def test_a_failed_batch_fails_its_requests_and_the_server_goes_on(serve, rm_dir, one_by_one, monkeypatch):
    server = serve(rm_dir)

    def broken(hidden):
        raise FloatingPointError("broken")

    monkeypatch.setattr(server.scorer.model.model.score, "forward", broken)
    answer = server.post(input=[5, 6])
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "input 0: FloatingPointError: 'broken'"
    monkeypatch.undo()
    assert server.raw([5, 6]) == pytest.approx(one_by_one([5, 6]), abs=1e-5)


def test_health_answers_and_unknown_paths_do_not(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/classify").status_code == 405
    assert server.client.post("/v1/chat/completions", json={}).status_code == 404


# --- sleep ------------------------------------------------------------------------------------------------------------


def test_requests_wait_while_the_server_sleeps(serve, rm_dir, one_by_one):
    server = serve(rm_dir)
    server.call(server.scorer.sleep())
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(server.raw, [5, 6])
        time.sleep(0.5)
        assert not answer.done()
        assert server.client.get("/health").status_code == 200
        server.call(server.scorer.wake_up())
        assert answer.result(timeout=20) == pytest.approx(one_by_one([5, 6]), abs=1e-5)


def test_a_server_that_nobody_wakes_says_so(serve, rm_dir, monkeypatch):
    monkeypatch.setattr(hf_scorer, "LONGEST_SLEEP_S", 0.3)
    server = serve(rm_dir)
    server.call(server.scorer.sleep())
    answer = server.post(input="x")
    assert answer.status_code == 503
    assert "reward.reward_model.rollout.free_cache_engine=False" in answer.json()["error"]["message"]


@pytest.mark.parametrize("changes", [{"free_cache_engine": False}, {"can_sleep": False}])
def test_a_server_that_keeps_its_device_answers_at_any_time(serve, rm_dir, changes):
    server = serve(rm_dir, **changes)
    server.call(server.scorer.sleep())
    assert math.isfinite(server.raw("x"))


# --- models that cannot be served -------------------------------------------------------------------------------------


def test_a_model_with_two_labels_is_refused(tiny_model_dir, tmp_path):
    make_tiny_classifier(tmp_path, tiny_model_dir, num_labels=2)
    with pytest.raises(ValueError, match="2 labels; a reward model has one"):
        ScoreModel(str(tmp_path), torch.float32, "cpu")


def test_a_policy_is_refused_although_transformers_would_make_it_a_head(tiny_model_dir, tmp_path):
    import shutil

    shutil.copytree(tiny_model_dir, tmp_path / "policy")
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    (tmp_path / "policy" / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a"}}))
    with pytest.raises(ValueError, match="no weights for score.weight"):
        ScoreModel(str(tmp_path / "policy"), torch.float32, "cpu")


def test_an_encoder_decoder_is_refused(tmp_path):
    from transformers import T5Config

    T5Config(num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="decoders and encoders, not both"):
        ScoreModel(str(tmp_path), torch.float32, "cpu")


def test_more_length_than_positions_is_refused(rm_dir):
    with pytest.raises(ValueError, match=f"max_model_len=5000, but the reward model has {POSITIONS} positions"):
        make_scorer(rm_dir, max_model_len=5000)


# --- verl's own reward model manager ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_verl_serves_the_reward_model_colocated_and_alone(rm_dir, one_by_one, tmp_path):
    """On a Ray with one logical GPU; through verl's router, which asks the server at the address that it was given."""
    texts = ["a", "pods restart", "x " * 300, "<|im_start|>user\nlogs<|im_end|>\n", "é" * 40]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    harness = Path(__file__).with_name("reward_server_harness.py")
    done = subprocess.run(
        [sys.executable, harness, rm_dir, tmp_path / "texts.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    colocated, standalone = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"mode"'))
    expected = [one_by_one(scoring_ids(make_tokenizer(), text)) for text in texts]
    for answers in (colocated, standalone):
        for endpoint in ("classify", "v1/embeddings"):
            assert answers[endpoint] == pytest.approx(expected, abs=1e-5), (answers["mode"], endpoint)
        assert answers["memory_gib"] < 3
    # verl puts a colocated reward model to sleep at start
    assert colocated["waited"] is True
    assert [colocated["early"], colocated["again"]] == pytest.approx([expected[0]] * 2, abs=1e-5)
