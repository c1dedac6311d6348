"""Generative adversarial networks: trained, sampled, judged and used for translation."""
