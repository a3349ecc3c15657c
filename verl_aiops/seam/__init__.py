"""What of verl this package needs beyond verl's documented names, in one place.

verl promises little: most names that a trainer, an engine or a rollout of ours needs stand in no documentation and
move between releases. So each stands here once, in a table by what it belongs to (`trainer`, `engine`, `queue`,
`reward_loop`, `rollout`, and `replaced` for what `plugin.py` puts something in the place of), with where verl has it,
how we call it, and what for. The rest of the package takes such names from here alone, and the names that verl
documents (`documented.py`) from verl itself; tests/seam/test_imports.py holds both. Methods that ours override, and
names that verl keeps to itself, stand in `verl_patches/` (`overrides.py`, `private.py`).

A name is looked up when it is asked for, not when a file of this folder is imported: where a verl lacks one, what needs
it is missing alone. For a verl that has a name elsewhere, or not at all, `elsewhere.py` says what stands for it.
"""

# First, and here: verl loads the plug-in while it is imported, and the plug-in needs modules of this package. If one of
# them were the first to import verl, the plug-in would meet it half made and fail, which verl does not show.
import verl  # noqa: F401
