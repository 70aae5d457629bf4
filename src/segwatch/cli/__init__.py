"""The command line: parse, one call, print."""

from segwatch.cli.main import app, main

__all__ = ["app", "main"]
