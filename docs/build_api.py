"""Write the API reference as HTML: `python docs/build_api.py FOLDER` (or `make docs`)."""

from __future__ import annotations

import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import normapps

# pdoc sees what is in the module; these names come on first use
_ = normapps.OnnxModel, normapps.ProgramModel, normapps.Stylizer, normapps.load_model
names = [found.name for found in pkgutil.walk_packages(normapps.__path__, "normapps.")]
warnings.filterwarnings("ignore", module="pdoc")  # of names imported for types only
pdoc.render.configure(docformat="google")
pdoc.pdoc("normapps", *names, output_directory=Path(sys.argv[1]))
