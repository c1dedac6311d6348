"""The named layers: each a short composition of partition, moments, operation and recovery."""
