"""Rows of the papers' tables as configurations, by name; docs/reproduce.md is their page."""
