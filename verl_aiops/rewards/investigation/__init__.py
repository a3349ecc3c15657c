"""The rule reward of investigations: what a verdict says, what the tools returned, what is true, and what each pays."""
