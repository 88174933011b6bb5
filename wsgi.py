"""Load the settings, create the app; nothing else."""

import os

from app import start
from app.errors import ConfigError
from app.factory import create_app

try:
    app = create_app(start.prepare(os.environ.get("MANIFOLD_CONFIG", "config.yaml"), os.environ))
except ConfigError as error:
    raise SystemExit(start.refused(error, os.environ)) from None
