"""What became of the rows of a data set, as a run tells it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from verl_aiops.data.notes import OF_EXAMPLES, say
from verl_aiops.inputs.shown import counted

logger = logging.getLogger(__name__)

_PLURAL = {"pair": "pairs", "yes": "yes", "no": "no", "list": "lists"}


@dataclass
class DataReport:
    """What became of the rows read.

    `kept` counts rows that gave examples, `examples` these by what they are: pair, yes, no, list.

    `dropped` counts rows left out, by reason (each row under one reason); `notes` the kept rows of each kind in
    `notes.NOTES`; `unused` names columns of the files that are not read.
    """

    rows: int = 0
    kept: int = 0
    examples: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=lambda: {"prompt_too_long": 0, "answer_too_long": 0})
    prompts_cut: int = 0
    prompt_end_changed: int = 0
    eos_appended: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.kept} of {self.rows} {self.what} kept"]
        if self.what != "pairs" and self.kept:
            counts = (f"{count} {_PLURAL[kind] if count != 1 else kind}" for kind, count in self.examples.items())
            parts[0] += f" ({', '.join(counts)})"
        parts += [f"{count} dropped ({reason.replace('_', ' ')})" for reason, count in self.dropped.items() if count]
        for kind, count in self.notes.items():
            if kind.startswith("layout: "):
                parts.append(f"{count} in the layout of {kind.removeprefix('layout: ')}")
        for kind, how in (("text_plain", "without"), ("text_in_chat", "in")):
            if self.notes.get(kind):
                parts.append(f"{self.notes[kind]} of plain texts {how} the chat template")
        if self.prompts_cut:
            parts.append(f"{counted(self.prompts_cut, 'prompt')} cut from the left")
        if self.unused:
            parts.append(f"columns not used: {', '.join(self.unused)}")
        return ", ".join(parts)

    @property
    def what(self) -> str:
        """What the rows are called: pairs, where every one is one."""
        return "pairs" if set(self.examples) <= {"pair"} and self.examples.get("pair", 0) == self.kept else "rows"

    def note(self, kind: str) -> None:
        """Count one more kept row of this kind."""
        self.notes[kind] = self.notes.get(kind, 0) + 1

    def warn(self) -> None:
        """One warning for each kind of row that its writer may not expect."""
        examples = sum(self.examples.values())
        say({kind: n for kind, n in self.notes.items() if kind not in OF_EXAMPLES}, self.kept, logger, self.what)
        of_examples = {kind: n for kind, n in self.notes.items() if kind in OF_EXAMPLES}
        say(of_examples, examples, logger, self.what if self.what == "pairs" else "examples")
        if self.prompt_end_changed:
            logger.warning(
                "%d of %d %s: the prompt's last tokens alone are not those it has before an answer, because the "
                "chat template's generation prompt does not come back in the conversation, or tokens merge across "
                "the border. These tokens are left out, so the model is trained after a prompt that differs at its "
                "end from the one it answers in use.",
                self.prompt_end_changed,
                self.rows,
                self.what,
            )
