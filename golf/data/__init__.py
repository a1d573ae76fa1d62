"""Text to shards, shards to batches, and the bytes that each token stands for."""
