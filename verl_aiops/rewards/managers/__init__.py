"""Reward managers of verl that score with this package's rewards; the rewards themselves need no verl."""

# First, and here: verl loads the plug-in while it is imported, and the plug-in waits for modules of this package. If
# one of them were the first to import verl, the plug-in would meet it half made and fail, which verl does not show.
import verl  # noqa: F401
