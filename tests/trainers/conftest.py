"""What tests of the trainers share."""

from machines import platform  # noqa: F401  (a fixture)
