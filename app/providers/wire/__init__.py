"""Formats shared by two providers: pure functions, no I/O."""
