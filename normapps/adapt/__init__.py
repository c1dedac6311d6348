"""Domain adaptation: statistics, test-time methods, domain-specific training, universal networks."""
