"""What a student's outputs lose against a teacher's: one file per kind of output (`TaskHead.output_kind`)."""
