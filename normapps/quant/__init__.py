"""Quantization through batch norms: fold, equalize, calibrate, int8, and whether it is worth it."""
