"""The planner: what a model and its training need, by arithmetic and by the compiler's word."""
