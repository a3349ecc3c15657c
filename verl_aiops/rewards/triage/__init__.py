"""The rule reward of triage: what an answer says, what is true, and what each component of the reward pays."""
