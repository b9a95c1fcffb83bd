"""Normalise URLs in an unusual form: a host in capitals, an IDN, user info.

Imported when such a URL is used: the import of requests takes as long as the fetch of a
small file.
"""

from __future__ import annotations

import requests
import urllib3


def prepared_url(url: str) -> str:
    """Return a URL; the library ``requests`` normalises its scheme, host and port.

    Raises ValueError for an invalid URL.
    """
    request = requests.PreparedRequest()
    try:
        request.prepare_url(url, None)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ValueError(str(error)) from error
    return request.url or ""
