"""Finished runs as folders that transformers loads and the Hugging Face Hub shows, and back."""
