"""What several providers' parameters have in common."""

import re
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


def is_header_text(text: str) -> None:
    """Check a credential. Raises ValidationError, without showing it, for what no header takes."""
    # A secret that was read from a file often ends with that file's line end.
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", text):
        raise ValidationError(
            "must be printable ASCII without blanks or line ends around it, and not empty"
        )
