"""What several providers' parameters have in common."""

from urllib.parse import urlsplit

from marshmallow import ValidationError


def is_address(url: str) -> None:
    """Check a base URL. Raises ValidationError for what is no http or https address."""
    # Not marshmallow's own check: it refuses the underscores that names in a compose file have.
    try:
        found = urlsplit(url)
        is_good = found.scheme in ("http", "https") and found.hostname and found.port != 0
    except ValueError:
        is_good = False
    if not is_good or found.query or found.fragment:
        raise ValidationError("must be an address like http://host:8000/v1")
