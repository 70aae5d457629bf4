"""Insert the generated metric into the warehouse, or truncate it: `python data/manage_data.py insert|truncate`.

The same as `segwatch data insert|truncate`, with the same options.
"""

import sys

from segwatch.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["data"]
    main()
