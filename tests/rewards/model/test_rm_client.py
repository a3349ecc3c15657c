"""A reward model's server that is slow, gone, wrong or lying: what becomes of the answers it should score."""

import asyncio
import json
import time

import pytest
from aiohttp import web

from verl_aiops.rewards.model.client import RewardModelClient, RewardModelError

QUICK = {"timeout_s": 0.3, "deadline_s": 2.0, "attempts": 3, "backoff_s": 0.01, "concurrency": 4}


def row(*scores, key="probs"):
    return {"data": [{"index": 0, key: list(scores)}]}


class Server:
    """Answers with what ``behave(text, n)`` gives for its n-th request: a dict, bytes, or a coroutine of either."""

    def __init__(self, behave):
        self.behave, self.requests, self.running, self.most = behave, [], 0, 0

    async def handle(self, request):
        body = await request.json()
        self.requests.append((request.path, body))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answer = self.behave(body["input"], len(self.requests))
            if asyncio.iscoroutine(answer):
                answer = await answer
        finally:
            self.running -= 1
        if isinstance(answer, web.Response):
            return answer
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        return web.json_response(answer)


def ask(behave, texts=("a",), server="vllm", **given):
    """Scores or errors of concurrent requests, the server, and the seconds that passed."""

    async def go():
        it = Server(behave)
        app = web.Application()
        app.router.add_post("/{path:.*}", it.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        client = RewardModelClient(f"127.0.0.1:{port}", server, "rm", **(QUICK | given))
        started = time.monotonic()
        results = await asyncio.gather(*(client.score(text) for text in texts), return_exceptions=True)
        passed = time.monotonic() - started
        await client.close()
        await runner.cleanup()
        return results, it, passed

    return asyncio.run(go())


def test_each_server_is_asked_in_its_own_way():
    (score,), server, _ = ask(lambda text, n: row(-1.5))
    assert score == -1.5
    assert server.requests == [("/classify", {"model": "rm", "input": "a", "use_activation": False})]
    (score,), server, _ = ask(lambda text, n: row(2, key="embedding"), server="sglang")
    assert score == 2.0 and server.requests == [("/v1/embeddings", {"model": "rm", "input": "a"})]
    (score,), server, _ = ask(lambda text, n: row(0.25), server="hf")
    assert score == 0.25 and server.requests[0][0] == "/classify"
    with pytest.raises(ValueError, match="rollout.name=trtllm: no known endpoint"):
        ask(lambda text, n: row(1), server="trtllm")


async def late(seconds, answer):
    await asyncio.sleep(seconds)
    return answer


# behaviour, requests that it may cost, what the error says
FAULTS = {
    "slow": (lambda text, n: late(5, row(1)), 3, "no answer within 0.3 s"),
    "500": (lambda text, n: web.Response(status=500, text="boom"), 3, "HTTP 500: 'boom'"),
    "501": (lambda text, n: web.Response(status=501, text="no such task"), 1, "HTTP 501: 'no such task'"),
    "404": (lambda text, n: web.Response(status=404, text="no such model"), 1, "HTTP 404: 'no such model'"),
    "HTML": (lambda text, n: b"<html><body>proxy</body></html>", 3, "the answer is no JSON: '<html><body>proxy"),
    "HTML behind verl's router": (
        lambda text, n: {"content_type": "text/html", "text": "<html>"},
        3,
        "expected one row under 'data', got",
    ),
    "NaN": (lambda text, n: b'{"data": [{"probs": [NaN]}]}', 1, "the score is nan"),
    "infinity": (lambda text, n: b'{"data": [{"probs": [-Infinity]}]}', 1, "the score is -inf"),
    "no rows": (lambda text, n: {"data": []}, 3, "expected one row under 'data'"),
    "two rows": (lambda text, n: {"data": row(1)["data"] * 2}, 3, "expected one row under 'data'"),
    "short list": (lambda text, n: row(), 1, r"expected one score \(a model with num_labels=1\), got 0 numbers"),
    "wrong shape": (lambda text, n: row(0.1, 0.9), 1, "got 2 numbers"),
    "nested": (lambda text, n: row([0.1]), 1, "the score is no number"),
    "text": (lambda text, n: row("1.0"), 1, "the score is no number: '1.0'"),
    "bool": (lambda text, n: row(True), 1, "the score is no number: 'True'"),
    "no list": (lambda text, n: {"data": [{"score": 1}]}, 1, "got no list under 'probs'"),
    "list": (lambda text, n: b"[1]", 3, "expected one row under 'data'"),
    "deep": (lambda text, n: b"[" * 100_000, 3, "the answer is no JSON"),
    "endless": (lambda text, n: b" " * (3 << 20), 1, "an answer of more than 1048576 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_gets_no_score_a_reason_and_a_bounded_number_of_requests(fault):
    behave, requests, said = FAULTS[fault]
    (error,), server, passed = ask(behave)
    assert isinstance(error, RewardModelError)
    with pytest.raises(RewardModelError, match=f"no score from the reward model at .*: .*{said}"):
        raise error
    assert len(server.requests) == requests and passed < 3


def test_a_server_that_is_gone():
    async def go():
        client = RewardModelClient("127.0.0.1:9", "vllm", "rm", **QUICK)
        try:
            with pytest.raises(RewardModelError, match=r"ClientConnector\w*Error: .*attempt 3"):
                await client.score("a")
        finally:
            await client.close()

    asyncio.run(go())


@pytest.mark.parametrize("status", [500, 503, 429, 408, 409])
def test_a_passing_fault_costs_only_time(status):
    (score,), server, _ = ask(lambda text, n: row(7) if n > 2 else web.Response(status=status))
    assert score == 7.0 and len(server.requests) == 3


def test_the_deadline_holds_for_all_attempts_together():
    _, server, passed = ask(lambda text, n: late(9, row(1)), timeout_s=0.4, deadline_s=1.0, attempts=50, backoff_s=0.2)
    assert passed < 1.6 and 2 <= len(server.requests) <= 3


def test_requests_are_concurrent_up_to_the_bound():
    texts = [str(at) for at in range(12)]
    scores, server, passed = ask(lambda text, n: late(0.15, row(float(text))), texts, concurrency=4)
    assert scores == [float(at) for at in range(12)]
    assert server.most == 4 and passed < 12 * 0.15


def test_a_dead_server_is_not_asked_again_and_again():
    results, server, passed = ask(
        lambda text, n: web.Response(status=500), [str(at) for at in range(20)], concurrency=1
    )
    assert all(isinstance(result, RewardModelError) for result in results)
    assert len(server.requests) == 3 + 19


def test_one_bad_answer_does_not_harm_the_others():
    results, server, _ = ask(
        lambda text, n: b'{"data": [{"probs": [NaN]}]}' if text == "2" else row(float(text)),
        [str(at) for at in range(5)],
        concurrency=1,
    )
    assert [r for r in results if not isinstance(r, Exception)] == [0.0, 1.0, 3.0, 4.0]
    assert isinstance(results[2], RewardModelError) and len(server.requests) == 5


def test_a_server_that_comes_back_is_tried_in_full_again():
    state = {"down": True}

    def behave(text, n):
        if text == "up":
            state["down"] = False
        return web.Response(status=500) if state["down"] else row(1)

    results, _, _ = ask(behave, ["a", "b", "up", "c"], concurrency=1)
    assert [isinstance(r, Exception) for r in results] == [True, True, False, False]


def test_answers_of_any_json_are_read_without_raising_anything_else():
    for body in (None, 1, "x", [], {}, {"data": None}, {"data": [None]}, {"data": [{"probs": None}]}, row(None)):
        (error,), _, _ = ask(lambda text, n, body=body: json.dumps(body).encode(), attempts=1)
        assert isinstance(error, RewardModelError), body
