"""Test-time methods: networks that adapt to the stream of batches they are given."""
