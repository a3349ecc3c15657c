"""One command a task: the line of the stock trainer, written from a few options, shown and run."""
