"""The CPU as a platform of verl, its linear layers, and what else a machine lacks that verl takes for granted."""

# First, and here: verl loads the plug-in while it is imported, and the plug-in needs modules of this package. If one of
# them were the first to import verl, the plug-in would meet it half made and fail, which verl does not show.
import verl  # noqa: F401
