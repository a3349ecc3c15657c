"""How answers are generated for verl: conversations of several rounds, and a small rollout on transformers.

`rounds` is for any engine; `hf` is the rollout of that name.
"""

# First, and here: verl loads the plug-in while it is imported, and the plug-in waits for modules of this package. If
# one of them were the first to import verl, the plug-in would meet it half made and fail, which verl does not show.
import verl  # noqa: F401
