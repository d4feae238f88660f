"""What `flows.serve` serves: Prefect and the report, to who asks for this machine by its name.

A page whose own name is made to lead here (DNS rebinding) still sends that name as its host.
"""

from __future__ import annotations

import os
from urllib.parse import urlparse

from starlette.applications import Starlette
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from tnt.project import layout


def hosts() -> list[str]:
    """Return the names by which this machine is asked for."""
    named = urlparse(os.environ["PREFECT_API_URL"]).hostname
    return sorted({"127.0.0.1", "localhost", str(named)})


def prefect_server() -> ASGIApp:
    """Return Prefect's API and UI."""
    from prefect.server.api.server import create_app

    return TrustedHostMiddleware(create_app(), hosts())


def report_server() -> ASGIApp:
    """Return the pages of data/report/; DVC may have made them links into its cache."""
    pages = StaticFiles(directory=layout.REPORT, html=True, check_dir=False, follow_symlink=True)
    return TrustedHostMiddleware(Starlette(routes=[Mount("/", pages)]), hosts())
