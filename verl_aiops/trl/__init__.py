"""Training with TRL on the same preference files: reward models and DPO. Needs the extra ``trl``, nothing of verl."""
