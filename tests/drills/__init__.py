"""Crash drills: a process is killed at every step, restarted, and nothing is lost or left over."""
