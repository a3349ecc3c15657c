"""What of verl, TransferQueue or TRL is replaced where no registry would do it.

`plugin.py` says what, why and for which versions."""

# First, and here: verl loads the plug-in while it is imported, and the plug-in needs modules of this package. If one of
# them were the first to import verl, the plug-in would meet it half made and fail, which verl does not show.
import verl  # noqa: F401
