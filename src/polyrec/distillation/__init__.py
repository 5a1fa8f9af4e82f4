"""A student learns from a teacher's outputs, task by task."""
