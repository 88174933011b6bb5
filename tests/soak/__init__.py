"""Soak: a whole gateway under a steady mixed load, and what is judged of it afterwards."""
