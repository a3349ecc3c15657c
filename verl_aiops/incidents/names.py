"""Names of services and incident types in texts, and names that say the same in part.

A name is found as a whole word, in its own spelling. What stands around it decides:

- ASCII letters, digits, ``_`` and ``-`` join it to a longer word: ``db`` is not found in ``ledger-db``. Chinese text
  has no spaces around a name, so its characters join nothing. A ``-`` that no word follows joins nothing either, nor
  does one of an arrow: ``cart->db`` and ``db<-cart`` name both.
- ``.`` and ``/`` do not end a name that goes on: ``jenkins.io`` is not found in ``ci.jenkins.io``, nor ``cart`` in
  ``shop.cart.Add`` or ``/srv/cart/data``. It ends before the usual ends of file, unit and cluster names
  (``cart.log``, ``cart.shop.svc``, ``db-0.db.shop.svc``), as the host of an address (``http://cart/add``), and it
  begins after one word and a slash (``shop/cart-0``, ``pod/cart``), as Kubernetes writes what it names.
- The endings that Kubernetes gives to what it starts are no part of a name: ``cart`` is found in ``cart-0``,
  ``cart-7f9c4d5b6`` and ``cart-7f9c4d5b6-x2x9z``, not in ``cart-service``. Nor is the type that AWS X-Ray writes behind
  a node: ``cart_AWS::ECS::Fargate``.
- A name that stands inside a longer one of the same list is not found there: ``DNS infrastructure`` names no ``DNS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from string import ascii_letters, digits

from verl_aiops.incidents.schema import normalise_label

__all__ = ["names_in", "overlap", "spelling_key"]

_WORD = frozenset(ascii_letters + digits + "_-")
# kubernetes' SafeEncodeString: no vowels, and none of 0, 1, 3
_SAFE = "[bcdfghjklmnpqrstvwxz2456789]"
_POD = (
    r"-(?:[0-9]{1,3}"  # of a stateful set
    r"|(?=[a-z]*[0-9])(?:(?=[a-z]*[0-9][a-z]*[0-9])[0-9a-z]{4,7}|[0-9a-z]{8,10})-[0-9a-z]{5}"  # of a replica set
    r"|(?=[a-z]*[0-9][a-z]*[0-9])[0-9a-z]{8,10}"  # the replica set itself
    rf"|(?=[a-z]*[0-9]){_SAFE}{{5}})"  # of a daemon set
)
_PARTS = r"\.(?:log|out|err|pid|sock|conf|cfg|ya?ml|json|service|svc|exe|jar|py|go|(?:[0-9A-Za-z-]{1,63}\.){1,2}svc)"
_TYPE = "_AWS::[A-Z]"
_NO_WORD = r"(?![0-9A-Za-z_]|-+[0-9A-Za-z_])"
_POD_END = rf"(?:{_POD}{_NO_WORD})?"
_END = re.compile(rf"{_TYPE}|{_POD_END}(?:(?:{_PARTS}){_NO_WORD}|{_NO_WORD}(?![./][0-9A-Za-z_-]))")
_HOST_END = re.compile(rf"{_POD_END}(?:(?:{_PARTS}){_NO_WORD}|{_NO_WORD}(?!\.[0-9A-Za-z_-]))")
_SEPARATORS = re.compile(r"[\s_-]+")
_LEAST = 3
"""So many ASCII letters are contained in a longer name wherever they stand in it; fewer only as a word of it."""


def names_in(text: str, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that occur in ``text`` as whole words."""
    there = sorted({name for name in names if name in text}, key=len, reverse=True)
    taken = bytearray(len(text))
    found = set()
    for at, name in enumerate(there):
        inside_longer = any(name in longer for longer in there[:at])
        contains = any(name.find(shorter) >= 0 for shorter in there[at + 1 :])
        start = text.find(name)
        while start >= 0:
            end = start + len(name)
            if not (inside_longer and all(taken[start:end])) and _whole(text, start, end):
                found.add(name)
                if not contains:
                    break
                taken[start:end] = b"\1" * len(name)
            start = text.find(name, start + 1)
    return found


def _whole(text: str, start: int, end: int) -> bool:
    before = text[start - 1 : start]
    if before in _WORD and text[max(0, start - 2) : start] != "<-":
        return False
    host = text[max(0, start - 2) : start] == "//"
    goes_on = start > 1 and before in {".", "/"} and text[start - 2] in _WORD
    if goes_on and (before == "." or not _one_word_before(text, start - 1)):
        return False
    return (_HOST_END if host else _END).match(text, end) is not None


def _one_word_before(text: str, slash: int) -> bool:
    """Whether what ends at the slash is one word with nothing of a path or an address before it."""
    at = slash - 1
    while at >= 0 and slash - at <= 64 and text[at] in _WORD:
        at -= 1
    return at < 0 or text[at] not in _WORD and text[at] not in "./:@"


def spelling_key(label: str) -> str:
    """What spellings of one name have in common: compared as labels are, with spaces, `_` and `-` alike."""
    return _SEPARATORS.sub(" ", normalise_label(label)).strip() or label


def overlap(one: str, other: str) -> bool:
    """Whether one of two names contains the other: ``DNS`` and ``DNS infrastructure``, ``cart`` and ``cartservice``.
    Whoever answers the one may mean the other.

    Spellings do not count: ``mail_relay`` lies in ``mail relay node``, and is ``mail-relay``. Names of fewer than three
    ASCII letters must be a word of the longer one.
    """
    short, long = sorted(map(spelling_key, (one, other)), key=len)
    if not short or short not in long:
        return False
    if not short.isascii() or len(short) >= _LEAST:
        return True
    return re.search(rf"(?<![0-9a-z]){re.escape(short)}(?![0-9a-z])", long) is not None
