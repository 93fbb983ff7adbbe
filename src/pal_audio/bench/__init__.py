"""Efficiency: what training and inference cost, measured (`train`, `infer`) and predicted (`plan`)."""
