"""Agent loops made as verl makes them, over an engine that answers what it is told."""

import asyncio
from types import SimpleNamespace

from omegaconf import OmegaConf


class Scripted:
    """An engine that answers what it is told, as tokens, and remembers what it was asked."""

    def __init__(self, answers, logps=True, last_again=False):
        self.answers, self.logps, self.last_again, self.asked = list(answers), logps, last_again, []

    async def generate(self, **request):
        from verl.workers.rollout.replica import TokenOutput

        self.asked.append(request)
        number = len(self.asked)
        if self.last_again:
            number = min(number, len(self.answers))
        ids = self.answers[number - 1][: request["sampling_params"]["max_tokens"]]
        logps = [-float(token) for token in ids] if self.logps else None
        return TokenOutput(token_ids=ids, log_probs=logps, extra_fields={"global_steps": 3})


def encode(tokenizer, text, end=True):
    return tokenizer.encode(text, add_special_tokens=False) + [2] * end


def looped(loop_class, engine, tokenizer, model_dir, rollout, *rows, sampling=None, **more):
    """What an agent loop makes of each row: the output of one run. Settings of sampling, which verl shares with all
    rows, have to stay as they are.

    `rollout`: its section of the configuration; `more`: further arguments of the class.
    """
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"path": str(model_dir)}, "rollout": rollout}})
    sampling = {"temperature": 1.0} if sampling is None else sampling
    given = dict(sampling)

    async def go():
        loop = loop_class(
            trainer_config=SimpleNamespace(config=config),
            server_manager=engine,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=None,
            data_config=SimpleNamespace(config=OmegaConf.create({})),
            **more,
        )
        return [await loop.run(given, **row) for row in rows]

    outputs = asyncio.run(go())
    assert given == sampling
    return outputs
