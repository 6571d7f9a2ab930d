"""Rationales out of a teacher: ask, record every answer once, read, filter, score."""
