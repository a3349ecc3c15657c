"""Settings of the judge as verl's reward function, ``reward.custom_reward_function.reward_kwargs``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from verl_aiops.rewards.model import patience_settings
from verl_aiops.rewards.model.judge_prompts import check_prompt
from verl_aiops.settings import Settings, setting

__all__ = ["MODES", "JudgeSettings"]

MODES = ("pointwise", "pairwise")


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.-]+", value) is not None


@dataclass(frozen=True)
class JudgeSettings(Settings):
    """Whom to ask, how, and what it may cost; the same in every reward worker."""

    section = "reward.custom_reward_function.reward_kwargs"

    model: str = setting(
        "",
        "the name that the server knows the judge by; to be given.",
        fits=lambda value: isinstance(value, str) and not re.search(r"[\s?]", value),
        expected="a name without spaces",
    )
    url: str | None = setting(
        None,
        "of chat completions, as `http://host:8000/v1/chat/completions`; null: the language model that verl serves as "
        "`reward.reward_model`.",
    )
    mode: str = setting(
        "pointwise",
        "`pointwise`: a mark from 0 to 1; `pairwise`: 1 where the answer beats the data's own in both orders, 0 where "
        "it loses in both, else 0.5.",
        choices=MODES,
    )
    prompt_file: str | None = setting(
        None, "a prompt in place of `POINTWISE` or `PAIRWISE` (`verl_aiops/rewards/model/judge_prompts.py`)."
    )
    cache_dir: str | None = setting(
        None,
        "folder in which verdicts are kept by content, for all workers and later runs; null: in each worker's memory.",
    )
    key_env: str = setting(
        "OPENAI_API_KEY",
        "environment variable with the key, where the server wants one.",
        fits=lambda value: isinstance(value, str) and value.isidentifier(),
        expected="the name of an environment variable",
    )
    request_key: str = setting(
        "incident_text", "where `extra_info` has the request's text.", fits=_is_key, expected="the name of a field"
    )
    reference_key: str = setting(
        "answers",
        "of `pairwise`: where `extra_info` has the answer to compare with.",
        fits=_is_key,
        expected="the name of a field",
    )
    longest_text: int = setting(
        100_000,
        "characters of the request and of an answer at most, as they are quoted (what is escaped has six for one); a "
        "longer one is not judged. The judge's context has to hold them: some servers cut a longer prompt in silence.",
        within="[1, inf)",
    )
    max_tokens: int = setting(512, "of a judge's answer.", within="[16, 65536]")
    timeout_s: float = patience_settings.TIMEOUT_S()
    deadline_s: float = patience_settings.deadline_s("verdict")
    attempts: int = patience_settings.attempts(3, "verdict")
    backoff_s: float = patience_settings.BACKOFF_S()
    concurrency: int = patience_settings.concurrency(16)
    most_requests: int = setting(
        0, "of one reward worker in all; then every further answer fails. 0: no limit.", within="[0, inf)"
    )
    cache_size: int = setting(100_000, "verdicts that a worker keeps in memory.", within="[1, inf)")

    @classmethod
    def of_run(cls, section: Any) -> JudgeSettings:
        """`from_section` of a run, which has to name the model.

        Raises:
            ValueError: as there, or no ``model``.
        """
        read = cls.from_section(section)
        if not read.model:
            raise cls.refused("model", read.model, "the name that the server knows the judge by")
        return read

    @classmethod
    def refused(cls, name: str, value: Any, wanted: str) -> ValueError:
        return super().refused(name, repr(value) if isinstance(value, str) else value, wanted)

    def check_together(self) -> None:
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme not in ("http", "https") or not parts.netloc or not parts.path.rstrip("/"):
                raise self.refused("url", self.url, "an address as http://host:8000/v1/chat/completions")
            if not parts.path.rstrip("/").endswith("/chat/completions"):
                whole = f"{self.url.rstrip('/')}/chat/completions"
                raise self.refused("url", self.url, f"an address that ends with /chat/completions, as {whole}")
        if self.timeout_s > self.deadline_s:
            raise self.refused("timeout_s", self.timeout_s, f"at most deadline_s={self.deadline_s}")
        self.prompt()
        if self.cache_dir is not None:
            folder = Path(os.path.expanduser(self.cache_dir))
            if folder.exists() and not folder.is_dir():
                raise self.refused("cache_dir", self.cache_dir, "a folder; there is a file of this name")
            above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
            if not os.access(above, os.W_OK):
                raise self.refused("cache_dir", self.cache_dir, f"a folder that can be written to; {above} cannot")

    def prompt(self) -> dict[str, str]:
        """The prompt of a user's own, as an argument of `Judge`; nothing without one.

        Raises:
            ValueError: no such file, or no template with the fields that are needed.
        """
        if self.prompt_file is None:
            return {}
        path = Path(os.path.expanduser(self.prompt_file))
        try:
            return {self.mode: check_prompt(path.read_text(encoding="utf-8"), self.mode)}
        except OSError as error:
            raise self.refused("prompt_file", self.prompt_file, f"a file: {error.strerror or error}") from None
        except ValueError as error:
            raise self.refused("prompt_file", self.prompt_file, f"a template: {error}") from None
