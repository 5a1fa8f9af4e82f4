"""Objectives that ride along with the tasks: what histories and texts teach without labels. One file each."""
