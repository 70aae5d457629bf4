#!/bin/bash
# Trains on flights out of New York to the end of October 2013 and scores November and December.
set -euo pipefail
cd "$(dirname "$0")"
PYTHON="$(dirname "$(command -v segwatch)")/python"
[ -x "$PYTHON" ] || PYTHON=python3
"$PYTHON" load.py
segwatch create
segwatch data insert --from departures.csv
segwatch train --as-of 2013-11-01
segwatch infer --start 2013-11-01 --end 2014-01-01
segwatch report
