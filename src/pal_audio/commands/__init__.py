"""One file for each verb of `pal`. Heavy imports stand inside the functions, so that `--help` does not wait for torch."""
