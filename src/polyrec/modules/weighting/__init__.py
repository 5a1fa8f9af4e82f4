"""How task losses become one objective: one file per method."""
