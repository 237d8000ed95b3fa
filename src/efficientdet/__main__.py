"""Runs the command line as `python -m efficientdet`."""

import sys

from efficientdet.cli import main

sys.exit(main())
