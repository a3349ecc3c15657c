"""Text rows through vision-language models as verl patches them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["only_text", "without_vision_tower"]

_ONLY_TEXT: ContextVar[bool] = ContextVar("only_text", default=False)


@contextmanager
def only_text():
    """Within, no row of any worker has images."""
    token = _ONLY_TEXT.set(True)
    try:
        yield
    finally:
        _ONLY_TEXT.reset(token)


def without_vision_tower(get_input_embeds: Callable) -> Callable:
    """Wrap verl's ``_get_input_embeds``: within `only_text`, the embeddings of the tokens; else verl's."""

    @functools.wraps(get_input_embeds)
    def embeds(model, input_ids, attention_mask=None, *images, **more):
        if not _ONLY_TEXT.get():
            return get_input_embeds(model, input_ids, attention_mask, *images, **more)
        return model.get_input_embeddings()(input_ids), attention_mask

    return embeds
