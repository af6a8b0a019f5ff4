"""The float model: pure functions over parameter trees, and the parameter table."""
