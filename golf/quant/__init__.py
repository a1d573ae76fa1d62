"""Quantization: pure functions from weights to integer codes with one float16 scale a row."""
