"""Training with labelled sources and unlabelled targets, domain by domain."""
