"""A student learns from what a teacher answers, task by task."""
