"""What runs in a worker process: engine, objective, steps."""
