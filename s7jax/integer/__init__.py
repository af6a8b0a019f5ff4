"""Integers: post-training quantisation and the weights folder it writes."""
