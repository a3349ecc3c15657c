"""Preference learning and incident-triage rewards for stock verl."""

from verl_aiops.moved import install as _install_moved

__version__ = "0.1.0"

_install_moved()
