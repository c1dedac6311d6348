"""Stylization: give a photo the statistics of a painting."""
