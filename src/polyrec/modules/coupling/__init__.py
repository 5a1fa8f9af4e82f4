"""How a task follows from another one: one file per method."""
