"""Adapters for other frameworks, a module for each, which imports the framework."""
