"""Telling Go templates, which Ollama's registry gives, from Jinja templates, which are rendered here."""

from __future__ import annotations

import re

_GO = re.compile(
    r"\{\{-?\s*(?:/\*|\$|\.|(?:if|range|with|end|else|define|block|template|len|slice|json|eq|and|or|not)\b)"
)
_JINJA = re.compile(
    r"\{%|\{#|\{\{-?\s*(?:messages|bos_token|eos_token|raise_exception)\b|\|\s*(?:trim|tojson|upper)\b"
)


def is_go_template(source: str) -> bool:
    """True: a Go text/template such as "{{ .System }} {{ .Prompt }}"."""
    return _JINJA.search(source) is None and _GO.search(source) is not None
