"""Arguments and trainer."""
