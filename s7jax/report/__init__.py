"""The report of a run: its facts, its curves, one page and the same in Markdown."""
