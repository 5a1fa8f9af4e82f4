"""What a run folder is, and the steps that write one."""
