"""The generated metric and the schemas of the tables."""
