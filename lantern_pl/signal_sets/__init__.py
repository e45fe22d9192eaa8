"""Signal sets: what a teacher says about a data set, on disk, for students to learn from without the teacher in memory."""
