"""A language model as a judge of answers, and its verdict as a reward: any endpoint with OpenAI's chat completions.

What is judged is hostile: an answer may say that it is the better one, close the quotation that it stands in, or write
a verdict of its own. So

- an answer is put into the judge's prompt as JSON text without anything that opens or closes a turn of a chat
  (`judge_prompts.quoted`), between marks with a random part that is new in each request and that no answer can know:
  nothing in it can end the quotation;
- the judge must end with one line of a strict form that names the same random part, `VERDICT-<part>: A`; anything
  else, or more than one such line, is no verdict;
- no verdict is a failure with a reason, never a zero, and never a half.

Pairwise, both orders are asked, since judges prefer a place (Zheng et al., arXiv 2306.05685, section 3.4): an answer
wins where it wins in both, and a judge that names the same place twice has given a tie, which is counted as its bias.
Prompts are texts with fields (`judge_prompts`), from files of a user's own where given.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from verl_aiops.http import HttpFault, JsonClient, Patience
from verl_aiops.reasoning import ANY, visible
from verl_aiops.rewards.model.judge_prompts import (
    PAIRWISE,
    POINTWISE,
    JudgeError,
    NoVerdict,
    check_prompt,
    prompt_of,
    quoted,
    verdict_of,
)
from verl_aiops.rewards.model.judge_settings import JudgeSettings
from verl_aiops.rewards.model.verdicts import Verdicts

__all__ = ["Judge", "Preference"]

LONGEST_ANSWER = 1 << 20


@dataclass(frozen=True)
class Preference:
    """``score``: 1 where the first answer is better, 0 where the second, 0.5 for a tie; ``verdicts``: what the judge
    said of each order, first, second or tie, as the answers were given; ``by_place``: it named the same place twice."""

    score: float
    verdicts: tuple[str, str]
    by_place: bool


@dataclass
class Judge:
    """Asks; keeps what it was told, by content.

    Args:
        url: of chat completions, as ``http://host:8000/v1/chat/completions``.
        model: the name that the server knows it by.
        key: sent as a bearer token.
        pairwise, pointwise: prompts.
        max_tokens: of a judge's answer.
        attempts: requests at most for one verdict, whatever went wrong with those before.
        longest_text: characters of a text as it is quoted, where what is escaped has six for one; what is longer is
            refused, as a server that cuts it would have the judge read a part, and of the prompt another one.
        most_requests: in all; then nothing is asked any more, and every further answer fails. 0 for no limit.
        cache_size, cache_dir: verdicts that are kept, see `verdicts.Verdicts`.
    """

    url: str
    model: str
    key: str | None = None
    pairwise: str = PAIRWISE
    pointwise: str = POINTWISE
    max_tokens: int = JudgeSettings.max_tokens
    longest_text: int = JudgeSettings.longest_text
    timeout_s: float = JudgeSettings.timeout_s
    deadline_s: float = JudgeSettings.deadline_s
    attempts: int = JudgeSettings.attempts
    backoff_s: float = JudgeSettings.backoff_s
    concurrency: int = JudgeSettings.concurrency
    most_requests: int = JudgeSettings.most_requests
    cache_size: int = JudgeSettings.cache_size
    cache_dir: str | None = JudgeSettings.cache_dir
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        check_prompt(self.pairwise, "pairwise")
        check_prompt(self.pointwise, "pointwise")
        patience = Patience(self.timeout_s, self.deadline_s, self.attempts, self.backoff_s)
        self._http = JsonClient(self.url, patience, longest=LONGEST_ANSWER, key=self.key, called="a judge's answer")
        self._slots = asyncio.Semaphore(self.concurrency)
        self._verdicts = Verdicts(self.cache_size, self.cache_dir)

    async def rate(self, request: str, answer: str) -> float:
        """From 0 to 1, in tenths.

        Raises:
            JudgeError: no verdict to be had.
        """
        said = await self._verdict("pointwise", r"10|[0-9]", request=request, answer=answer)
        return int(said) / 10

    async def prefer(self, request: str, first: str, second: str) -> Preference:
        """Both orders asked. Equal answers are a tie, and nobody is asked.

        Raises:
            JudgeError: no verdict to be had of one of the orders.
        """
        if first == second:
            return Preference(0.5, ("tie", "tie"), False)
        asked = (
            self._verdict("pairwise", "A|B|TIE", request=request, a=first, b=second),
            self._verdict("pairwise", "A|B|TIE", request=request, a=second, b=first),
        )
        here, there = await asyncio.gather(*asked)
        one = {"A": "first", "B": "second", "TIE": "tie"}[here]
        other = {"A": "second", "B": "first", "TIE": "tie"}[there]
        by_place = here == there != "TIE"
        self.counts["judge/pairs"] += 1
        self.counts["judge/same_place"] += by_place
        self.counts["judge/first_place"] += (here == "A") + (there == "A")
        score = {"first": 1.0, "second": 0.0}.get(one, 0.5) if one == other else 0.5
        self.counts["judge/ties"] += score == 0.5
        return Preference(score, (one, other), by_place)

    async def _verdict(self, kind: str, allowed: str, **given: str) -> str:
        # a text has at least as many characters once it is quoted: what is far too long is not quoted at all
        longest = max(len(text) if len(text) > self.longest_text else len(quoted(text)) for text in given.values())
        if longest > self.longest_text:
            most = f"{self.longest_text} characters, as it is quoted,"
            raise JudgeError(f"a text of more than {most} is not judged ({longest}; longest_text)")
        content = json.dumps([kind, self.model, getattr(self, kind), given], sort_keys=True)
        key = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
        kept = self._verdicts.asked.get(key)
        if kept is None:
            said = self._verdicts.find(key)
            if said is not None and re.fullmatch(allowed, said):
                self.counts["judge/cached"] += 1
                return said
            kept = asyncio.ensure_future(self._ask(kind, allowed, given))
            self._verdicts.remember(key, kept)
        else:
            self.counts["judge/cached"] += 1
        return await asyncio.shield(kept)

    async def _ask(self, kind: str, allowed: str, given: dict[str, str]) -> str:
        left = self.attempts

        def counted() -> None:
            """Before each request that is sent: of those that failed on the way the server may have made a verdict."""
            nonlocal left
            if self.most_requests and self.counts["judge/requests"] >= self.most_requests:
                raise JudgeError(f"the limit of {self.most_requests} requests to the judge is reached (most_requests)")
            self.counts["judge/requests"] += 1
            left -= 1

        async with self._slots:
            deadline = time.monotonic() + self.deadline_s
            while True:
                try:
                    return await self._once(kind, allowed, given, deadline, left, counted)
                except NoVerdict:
                    # a verdict without the form: the next request has another random part
                    self.counts["judge/no_verdict"] += 1
                    if left > 0 and time.monotonic() < deadline:
                        continue
                    self.counts["judge/failed"] += 1
                    raise
                except JudgeError:
                    self.counts["judge/failed"] += 1
                    raise

    async def _once(
        self,
        kind: str,
        allowed: str,
        given: dict[str, str],
        deadline: float,
        attempts: int,
        counted: Callable[[], None],
    ) -> str:
        text, word = prompt_of(getattr(self, kind), secrets.token_hex(8), **given)
        asked = {"model": self.model, "messages": [{"role": "user", "content": text}], "temperature": 0.0}
        asked["max_tokens"] = self.max_tokens
        try:
            said = await self._http.ask(asked, _content, deadline, attempts=attempts, before=counted)
        except HttpFault as fault:
            raise JudgeError(f"no answer from the judge at {self.url}: {fault}") from None
        # what it thinks before it answers is no verdict, whatever forms it weighs there
        return verdict_of(visible(said, ANY, None).text, word, allowed)

    def metrics(self) -> dict[str, float]:
        """Counts, and the share of pairs in which the judge named the same place twice."""
        pairs = self.counts["judge/pairs"]
        shares = {"judge/place_bias": self.counts["judge/same_place"] / pairs} if pairs else {}
        return {name: float(count) for name, count in self.counts.items()} | shares

    async def close(self) -> None:
        await self._http.close()


def _content(answer: Any, shown: str) -> str:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = first.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise HttpFault(f"expected a text under choices[0].message.content, got {shown}", True)
    if first.get("finish_reason") == "length":
        # of a 10 that was cut after its first digit nobody knows that it was none
        raise NoVerdict("the judge's answer was cut off (max_tokens); a longer one may hold a verdict")
    return content
