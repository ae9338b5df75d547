"""The interpreter as a service: `create_app` gives the API of a deployment."""

from flowdsl.service.app import create_app

__all__ = ["create_app"]
