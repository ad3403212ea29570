"""Timings and full-size checks; nothing here decides a test."""
