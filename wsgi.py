"""Load the settings, create the app; nothing else."""

import os

from app import start
from app.errors import ConfigError
from app.factory import create_app

try:
    settings = start.prepare(os.environ.get("MANIFOLD_CONFIG", "config.yaml"), os.environ)
    app = create_app(settings, metrics=start.measure(settings, "server", os.environ))
except ConfigError as error:
    raise SystemExit(start.refused(error, os.environ)) from None
