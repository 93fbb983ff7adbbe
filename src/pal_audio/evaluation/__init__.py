"""Tasks, answers, scores and reports: how good a model is, and whether it listens. See docs/evaluation.md."""
