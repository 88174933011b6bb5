"""Rows; knows no request and no provider."""
