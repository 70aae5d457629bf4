"""The live page of a project: incidents, segments, dimensions, models, runs, backtests and health."""
