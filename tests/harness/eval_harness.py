"""For the tests of evaluation: questions, a backend that knows the truth, and an OpenAI-compatible server."""

import asyncio
import contextlib
import json
import shutil
import socket
import threading
import time

from verl_aiops.evaluation.run.backend import Generation
from verl_aiops.evaluation.run.questions import incident_questions
from verl_aiops.incidents import PromptOptions, Simulator, simulator_source


def questions_of(count=6, seed=0, lang="mix", **options):
    simulator = Simulator(seed=seed, lang=lang, difficulty="mix")
    return incident_questions(simulator_source(simulator, count), PromptOptions(**{"budget": 400, **options}))


def right_answer(question):
    truth = question.ground_truth
    return json.dumps({field: truth[field] for field in question.fields})


def quoting(question):
    return f'What fails first is "{question.ground_truth["evidence"][0]}".'


class Knowing:
    """A backend that answers right, except where `wrong(job)` gives another last answer; remembers what it did."""

    def __init__(self, wrong=lambda job: None, fails=lambda job: None, dies_after=None):
        self.wrong, self.fails, self.dies_after = wrong, fails, dies_after
        self.asked, self.checked = [], 0

    def check(self, questions):
        self.checked += 1

    def generate(self, jobs, done):
        for job in jobs:
            if self.dies_after is not None and len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((job.question.id, job.sample))
            error = self.fails(job)
            if error:
                done(job, Generation(error=error))
                continue
            answer = self.wrong(job)
            answer = right_answer(job.question) if answer is None else answer
            done(job, Generation([quoting(job.question), answer], [False, False], [10, 5]))


class Server:
    """`reply(body, number)` gives (status, text or object) or raises; requests are remembered with their headers."""

    def __init__(self, reply, delay=None):
        self.reply, self.delay = reply, delay
        self.requests, self.headers, self.open, self.most_open = [], [], 0, 0
        self.times = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def app(self):
        from fastapi import FastAPI, Request, Response

        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request):
            body = await request.json()
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(dict(request.headers))
            self.times.append(time.monotonic())
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                if self.delay:
                    await asyncio.sleep(self.delay(body, number))
                status, content, *headers = self.reply(body, number)
            finally:
                self.open -= 1
            if not isinstance(content, str | bytes):
                content = json.dumps(content)
            return Response(content, status_code=status, headers=dict(*headers), media_type="application/json")

        return app


def completion(text, finish="stop", tokens=7):
    message = {"role": "assistant", "content": text}
    usage = {"completion_tokens": tokens}
    return {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


@contextlib.contextmanager
def serving(reply, delay=None):
    server = Server(reply, delay)
    with listening_app(server.app()) as server.port:
        yield server


@contextlib.contextmanager
def listening_app(app):
    """The port of a FastAPI application that runs in a thread."""
    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(timeout=10)
        listening.close()


def oracle(questions, *, round1=quoting):
    """A reply that knows the questions by their first message."""
    by_prompt = {question.messages[0]["content"]: question for question in questions}

    def reply(body, number):
        question = by_prompt[body["messages"][0]["content"]]
        return 200, completion((round1 if len(body["messages"]) == 1 else right_answer)(question))

    return reply


def verl_run(folder, model):
    """`folder` as a run of one process leaves it: one checkpoint, global_step_4, of a bfloat16 model; returns it."""
    import torch
    from transformers import AutoModelForCausalLM

    actor = folder / "global_step_4" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, actor / "huggingface")
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    torch.save(weights.state_dict(), actor / "model_world_size_1_rank_0.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    return folder
