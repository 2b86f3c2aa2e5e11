"""What schemathesis is told of bodies: most that name a model name one that is there, and most ask for few tokens.

Otherwise nearly every request ends at the name that no model has.  What is changed depends on the body alone, so that a
failure can be made again.
"""

import json
import zlib

import schemathesis

MODELS = ("demo", "demo", "demo", "mini")


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    number = zlib.crc32(json.dumps(body, sort_keys=True, default=str).encode())
    if isinstance(body.get("model"), str) and number % 8:
        body = {**body, "model": MODELS[number // 8 % len(MODELS)]}
    if isinstance(body.get("options"), dict) and number // 32 % 4:
        body["options"] = {**body["options"], "num_predict": number // 128 % 5}
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        if type(body.get(name)) is int and number // 32 % 4:
            body = {**body, name: number // 128 % 5}
    return body
