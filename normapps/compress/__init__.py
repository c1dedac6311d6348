"""The whole chain from a network to a small int8 file: slim, then quantize, then judge."""
