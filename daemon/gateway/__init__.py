"""The HTTP gateway: OpenAI's JSON to quantd.v1 messages and back, and nothing else."""
