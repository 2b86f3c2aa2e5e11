"""What happens to each documented field that is not simply done: refused by name, or taken without effect.

Every field that OpenAI documents for the served endpoints is either a field of the models in schema.py or stands here.
Fields that nobody documents are ignored, as OpenAI's own additions would otherwise break clients.
"""

from __future__ import annotations

from typing import Any

from daemon.errors import ApiError

# Fields that would change the answer and that are not done, with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "moderation": (),
    "web_search_options": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "typical_p": (1, 1.0),
    "mirostat": (0,),
    "min_tokens": (0,),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "truncate_prompt_tokens": (),
    "lora": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
}

# Fields that are taken and have no effect here, by what they are for; their types are checked where they have one.
WITHOUT_EFFECT: dict[str, type] = {
    "user": str,  # a caller's name for its own user: nothing is kept about users
    "safety_identifier": str,  # the same
    "prompt_cache_key": str,  # prompts are shared by their content
    "prompt_cache_retention": str,
    "prompt_cache_options": dict,
    "metadata": dict,  # for stored answers: none are stored
}


def refuse(field: str, message: str) -> ApiError:
    """A refusal that names the JSON field."""
    return ApiError("INVALID_ARGUMENT", f"{field}: {message}", field=field)


def check_fields(
    body: dict[str, Any],
    *,
    taken: frozenset[str] = frozenset(),
    more: dict[str, tuple[Any, ...]] | None = None,
) -> None:
    """Refuse what is not done; `taken`: fields that this endpoint does do, `more`: further ones that it does not."""
    _check_refused(body, {field: words for field, words in REFUSED.items() if field not in taken})
    _check_refused(body, more or {})
    for field, kind in WITHOUT_EFFECT.items():
        value = body.get(field)
        if field not in taken and value is not None and not isinstance(value, kind):
            raise refuse(field, f"must be {'an object' if kind is dict else 'a string'}")


def _check_refused(body: dict[str, Any], refused: dict[str, tuple[Any, ...]]) -> None:
    for field, harmless in refused.items():
        value = body.get(field)
        # 1 == True and 1 == 1.0 in Python, not in JSON
        if value is None:
            continue
        if not any(value == one and type(value) is type(one) for one in harmless):
            raise refuse(field, "is not supported by this server" if not harmless else only(harmless[0]))


def only(value: Any) -> str:
    """What to say of a field of which one value is served."""
    return f"only {value!r} is supported by this server"
