"""From text to exact batches: sources → tokenizer → packed sequences → mixture."""
