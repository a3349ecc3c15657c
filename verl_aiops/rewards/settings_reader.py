"""The settings of a rule reward from the keyword arguments of one call: checked, completed by the parts that a user
adds, and kept, since every answer of a run comes with the same ones."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import Field
from functools import lru_cache
from numbers import Real
from typing import Any, Generic, TypeVar

from verl_aiops.settings import expected, fits, kinds, settings_of

__all__ = ["SettingsReader"]

# what verl's reward managers pass themselves
_VERL_KWARGS = frozenset(
    {
        "reward_router_address",
        "reward_model_tokenizer",
        "sandbox_fusion_url",
        "concurrent_semaphore",
        "memory_limit_mb",
    }
)

S = TypeVar("S")


class SettingsReader(Generic[S]):
    """Reads the settings of one reward.

    Args:
        owner: a frozen dataclass of settings (`verl_aiops.settings.setting`) with a field ``format_weight``, as which
            the weights of parts are checked, and ``parts``: (name, part) for each part, with its weight as set.
        parts: the table of a user's parts by name; each is a NamedTuple with ``weight``.
        check_part: raises ValueError where a part cannot be used under its name.
        check: raises ValueError for settings that cannot be together; gets them and the weights of the parts.
    """

    def __init__(
        self,
        owner: type[S],
        parts: Mapping[str, Any],
        check_part: Callable[[str, Any], None],
        check: Callable[[S, Mapping[str, float]], None],
    ):
        self.owner, self.parts, self.check_part, self.check = owner, parts, check_part, check
        self.fields: dict[str, Field[Any]] = {of.name: of for of in settings_of(owner)}
        self.default = owner()
        self._kept = lru_cache(maxsize=64)(self._build)

    def read(self, kwargs: Mapping[str, Any]) -> S:
        """Settings from the keyword arguments of one call, with the parts that the table has by then.

        Arguments that verl's reward managers pass themselves are ignored. Any other unknown name is refused if it could
        have been meant as a setting: it speaks of a weight, resembles a setting, or has a number for its value.

        Raises:
            ValueError: an unknown or out-of-range setting, or some that cannot be together.
        """
        if not kwargs and not self.parts:
            return self.default
        given = {name: value for name, value in kwargs.items() if name not in _VERL_KWARGS}
        if not given and not self.parts:
            return self.default
        # With the types, or True would find what was checked for 1.
        key = tuple((name, type(value), value) for name, value in given.items()), tuple(self.parts.items())
        try:
            return self._kept(*key)
        except TypeError:  # an unhashable value cannot be looked up; its check says what is wrong with it
            return self._build(*key)

    def _build(self, given: tuple, parts: tuple) -> S:
        for name, part in parts:
            self.check_part(name, part)
        weights = {f"{name}_weight": part.weight for name, part in parts}
        if clash := [name for name in weights if name in self.fields]:
            raise ValueError(f"reward part {clash[0].removesuffix('_weight')!r}: {clash[0]} is a setting already")
        known = (*self.fields, *weights)
        values = {}
        for name, _, value in given:
            if name in known:
                values[name] = self._checked(name, value)
            else:
                self._refuse_if_meant(name, value, known)
        weights = {name: self._checked(name, values.pop(name, weight)) for name, weight in weights.items()}
        weighed = tuple((name, part._replace(weight=weights[f"{name}_weight"])) for name, part in parts)
        settings = self.owner(**values, **{"parts": weighed})
        self.check(settings, weights)
        return settings

    def _of(self, name: str) -> Field[Any]:
        # the weight of a part that is added is checked like this one
        return self.fields.get(name, self.fields["format_weight"])

    def _checked(self, name: str, value: Any) -> Any:
        of = self._of(name)
        if not fits(of, value):
            raise ValueError(f"reward_kwargs: {name}: expected {expected(of)}, got {value!r}")
        return value if value is None else {"int": int, "float": float}.get(kinds(of)[0], lambda same: same)(value)

    def _refuse_if_meant(self, name: str, value: object, known: tuple[str, ...]) -> None:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        alike = bool(difflib.get_close_matches(name, known, n=1, cutoff=0.65))
        if alike or "weight" in name or isinstance(value, Real):
            takes = expected(self._of(nearest)).replace("true or false", "from False to True")
            takes = takes.removeprefix("a number ").removeprefix("an integer ")
            raise ValueError(
                f"reward_kwargs: unknown setting {name!r}; the nearest known one is {nearest!r} ({takes}); "
                f"known: {', '.join(known)}"
            )
