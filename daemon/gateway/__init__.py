"""The HTTP gateway: OpenAI's JSON to quantd.v1 messages and back, and nothing else."""

from daemon.gateway.app import create_app

__all__ = ["create_app"]
