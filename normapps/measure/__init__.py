"""Latency, memory, intervals and reports."""
