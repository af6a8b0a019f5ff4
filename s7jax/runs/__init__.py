"""Runs: opening one from its flags, the whole chain on it, what is in it, how good it is."""
