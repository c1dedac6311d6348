"""Give every picture of a folder the style of one painting, and say what became of each.

    python examples/stylize_folder.py photos painting.jpg out

Run again, it keeps what it finished and does the rest.
"""

import sys

from normapps.style.job import stylize_files
from normapps.style.options import StylizeOptions

photos, painting, out = sys.argv[1:]
options = StylizeOptions(style=(painting,), output=out, alpha=0.8)
for result in stylize_files(options, [photos]):
    print(result.output, result.status, result.error)
