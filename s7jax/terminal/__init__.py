"""What a person sees: help, exit codes, progress, tables; and one voice for several processes."""
