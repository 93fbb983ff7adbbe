"""Scores as pure functions: answers and truths in, numbers out. No files, no model, except where a function says so."""
