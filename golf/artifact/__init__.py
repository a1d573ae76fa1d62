"""The artifact: quantized tensors and their recipe in one file, counted to the byte against the limit."""
