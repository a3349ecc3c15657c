"""Training with TRL on the same preference files: reward models. Needs the extra ``trl``, and nothing of verl."""
