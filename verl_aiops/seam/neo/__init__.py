"""A prototype for verl's branch `neo`, which has no TransferQueue, refuses `trainer.use_v1=True` and names no trainers.

Nothing of it is used with a verl of the supported range. What of `neo` it rests on is of b0d344b of 2026-08-17;
docs/verl_versions.md says what was run."""
