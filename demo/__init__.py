"""A small data set made by code, and one command that takes it through every stage of the suite."""
