"""What of verl, TransferQueue or TRL is replaced where no registry would do it.

`plugin.py` says of each function that is replaced what, why and for which versions, `overrides.py` of each method that
a class of ours overrides, and `private.py` of each name that others keep to themselves and we use."""

# First, and here: verl loads the plug-in while it is imported, and the plug-in needs modules of this package. If one of
# them were the first to import verl, the plug-in would meet it half made and fail, which verl does not show.
import verl  # noqa: F401
