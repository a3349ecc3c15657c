"""How faulty preference data is reported: every fault of all rows counted, the first few told in full."""

from verl_aiops.inputs.shown import UserError


class PreferenceDataError(UserError):
    """Preference data that cannot be used. The message names file and row, and says what to change."""


class RowFault(ValueError):
    """What is wrong with one row; whoever knows its file and number adds them."""


class FaultList:
    """Counts faults and keeps the first few, so that a user can mend all rows at once without reading a flood."""

    SHOWN = 5

    def __init__(self):
        self.count = 0
        self._first = []

    def add(self, where, what):
        self.count += 1
        if len(self._first) < self.SHOWN:
            self._first.append(f"{where}: {what}")

    def message(self, headline):
        """`headline` and one indented line per fault shown."""
        lines = [headline, *(f"  {fault}" for fault in self._first)]
        if self.count > len(self._first):
            lines.append(f"  ... and {self.count - len(self._first)} more")
        return "\n".join(lines)
