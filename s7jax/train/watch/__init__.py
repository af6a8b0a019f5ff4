"""Watching a training run: metrics, signals, a watchdog, traces."""
