"""Training: the step, the phases, checkpoints, the router fit, evaluation."""
