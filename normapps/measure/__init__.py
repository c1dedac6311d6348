"""Latency, memory and reports."""
