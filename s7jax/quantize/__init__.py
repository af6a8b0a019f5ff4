"""Post-training quantisation: calibrate, smooth, round, export the weights folder."""
