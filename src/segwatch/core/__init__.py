"""The pure part: no network, no clock, no environment, no printing."""
