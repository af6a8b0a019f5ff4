"""Benchmark tasks: a run's float model beside the sealed integer one, by lm-evaluation-harness."""
