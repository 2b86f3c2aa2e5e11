"""Every documented endpoint and field, and what becomes of it; tests prove each row, ops/compatibility.py prints them.

done     the field reaches the backend's message, or changes the answer
refused  a 400 that names the field
ignored  taken, checked for its type, and without effect, for the reason given
"""

from dataclasses import dataclass
from typing import Any

DONE, REFUSED, IGNORED = "done", "refused", "ignored"


@dataclass(frozen=True)
class Endpoint:
    """An endpoint; `body` is the smallest request that it takes, None for those without one."""

    method: str
    path: str
    what: str
    body: dict[str, Any] | None = None
    status: int = 200


@dataclass(frozen=True)
class Row:
    """One field: a value that asks for something, and what becomes of it.  `needs`: what it must stand beside."""

    field: str
    value: Any
    outcome: str = DONE
    note: str = ""
    needs: tuple[tuple[str, Any], ...] = ()
    param: str = ""  # named by the refusal, where it is not the field itself
    in_answer: bool = False  # the answer shows it, not the message


MESSAGES = [{"role": "user", "content": "Hi"}]
FUNCTION = {"name": "add", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
_CHAT = {"model": "demo", "messages": MESSAGES}
_TEXT = {"model": "demo", "prompt": "Hi"}
_RERANK = {"model": "demo", "query": "Hi", "documents": ["Hello", "a"]}

ENDPOINTS = (
    Endpoint("POST", "/v1/chat/completions", "chat, whole and streamed", _CHAT),
    Endpoint("POST", "/v1/chat/completions/input_tokens", "token count of a chat", _CHAT),
    Endpoint("POST", "/v1/completions", "text completion", _TEXT),
    Endpoint("POST", "/v1/responses", "responses, stateless", {"model": "demo", "input": "Hi"}),
    Endpoint(
        "POST", "/v1/responses/input_tokens", "token count of a response", {"model": "demo", "input": "Hi"}
    ),
    Endpoint("POST", "/v1/messages", "Anthropic's messages", {**_CHAT, "max_tokens": 5}),
    Endpoint("POST", "/v1/messages/count_tokens", "token count of messages", _CHAT),
    Endpoint(
        "POST",
        "/v1/embeddings",
        "vectors of texts; 400 for models that generate",
        {"model": "demo", "input": "Hi"},
    ),
    Endpoint("POST", "/v1/rerank", "documents by the cosine of their embeddings", _RERANK),
    Endpoint("POST", "/rerank", "the same", _RERANK),
    Endpoint("GET", "/", "says that Ollama is running"),
    Endpoint("GET", "/api/version", "version, Ollama's form"),
    Endpoint("GET", "/api/tags", "every model, Ollama's form"),
    Endpoint("GET", "/api/ps", "models in memory, Ollama's form"),
    Endpoint("POST", "/api/show", "one model in full, Ollama's form", {"model": "demo"}),
    Endpoint("POST", "/api/chat", "lines of JSON, Ollama's form", _CHAT),
    Endpoint("POST", "/api/generate", "lines of JSON, Ollama's form", {"model": "demo", "prompt": "Hi"}),
    Endpoint("POST", "/api/embed", "vectors, Ollama's form", {"model": "demo", "input": "Hi"}),
    Endpoint("POST", "/api/embeddings", "one vector, Ollama's older form", {"model": "demo", "prompt": "Hi"}),
    Endpoint(
        "POST", "/api/create", "a model from another one or from blobs", {"model": "new", "from": "demo"}
    ),
    Endpoint("POST", "/api/copy", "a second name", {"source": "demo", "destination": "new"}),
    Endpoint("DELETE", "/api/delete", "forgets a name", {"model": "demo"}),
    Endpoint("POST", "/api/pull", "a model of the Hub or of a registry", {"model": "demo"}),
    Endpoint("HEAD", "/api/blobs/sha256:aa", "whether the store has a blob"),
    Endpoint("POST", "/api/blobs/sha256:aa", "stores a blob", {}, 201),
    Endpoint("GET", "/api/info", "memory, sessions and models of this server"),
    Endpoint("POST", "/api/push", "absent: nothing is published from here", {"model": "demo"}, 404),
    Endpoint("GET", "/v1/models", "every model; loaded when first asked"),
    Endpoint("GET", "/v1/models/demo", "one model"),
    Endpoint("POST", "/tokenize", "text or chat to token ids", {"content": "Hi"}),
    Endpoint("POST", "/detokenize", "token ids to text", {"tokens": [1]}),
    Endpoint("POST", "/apply-template", "chat to prompt text", _CHAT),
    Endpoint("GET", "/health", "503 while not ready"),
    Endpoint("POST", "/v1/moderations", "absent: no moderation model", {"input": "x"}, 404),
    Endpoint("GET", "/v1/responses/resp_1", "absent: nothing is stored", None, 404),
)

_NO_STORE = "nothing is stored"
_NO_USERS = "nothing is kept about users"
_BY_CONTENT = "beginnings of prompts are shared by their content"
_SAMPLING = (
    Row("frequency_penalty", 0.5),
    Row("presence_penalty", 0.5),
    Row("logit_bias", {"5": -1, "word": 2}, note="token ids, and texts"),
    Row("seed", 3),
    Row("stop", ["x"], note="up to 16"),
    Row("temperature", 0.5),
    Row("top_p", 0.5),
    Row("n", 2, note="up to 16"),
    Row("stream_options", {"include_usage": True}, needs=(("stream", True),), in_answer=True),
    Row("user", "u", IGNORED, _NO_USERS),
)
# Ollama's options have names of their own for some of these, and a place of their own.
_OPTIONS = (
    Row("options.temperature", 0.5),
    Row("options.top_k", 5),
    Row("options.top_p", 0.5),
    Row("options.min_p", 0.5),
    Row("options.repeat_penalty", 1.1),
    Row("options.repeat_last_n", 5, note="-1: 4096"),
    Row("options.presence_penalty", 0.5),
    Row("options.frequency_penalty", 0.5),
    Row("options.seed", 3),
    Row("options.num_predict", 5),
    Row("options.num_ctx", 256, note="never reloads a model; at most what a session holds"),
    Row("options.stop", ["x"], note="up to 16"),
    *(
        Row(f"options.{name}", value, IGNORED, note)
        for name, value, note in (
            ("num_keep", 4, "nothing is shifted out of a context"),
            ("typical_p", 0.5, "no such sampler; Ollama's runner has dropped it too"),
            ("num_thread", 2, "the threads are the daemon's"),
            ("num_batch", 64, "the rows of a step are the daemon's"),
            ("num_gpu", 1, "there is no GPU"),
            ("use_mmap", False, "models are always mapped"),
            ("mirostat", 1, "Ollama has dropped it too"),
        )
    ),
)
_OLLAMA = (
    Row("model", "demo"),
    Row("stream", False, in_answer=True),
    Row("format", {"type": "object"}, note="json, or a JSON Schema"),
    Row("think", True, note="true, false, low, medium, high, max"),
    Row("keep_alive", "3m", note="seconds or a duration; 0 unloads, negative: for ever"),
    Row("logprobs", True),
    Row("top_logprobs", 3, needs=(("logprobs", True),)),
    *_OPTIONS,
    Row("truncate", True, IGNORED, "a prompt that is too long is refused, never cut"),
    Row("shift", True, IGNORED, "an answer ends where its context does"),
    Row("something nobody documents", 1, IGNORED, "as Ollama does"),
)
_EXTRA = (
    Row("top_k", 5),
    Row("min_p", 0.5),
    Row("repeat_penalty", 1.1),
    Row("repetition_penalty", 1.1, note="vLLM's name"),
    Row("repeat_last_n", 5),
    Row("ignore_eos", True),
    Row("grammar", 'root ::= "a"', note="GBNF or Lark"),
    Row("json_schema", {"type": "string"}),
    Row("structured_outputs", {"regex": "a"}, note="vLLM's name"),
    Row("guided_json", {"type": "string"}),
    Row("guided_regex", "a"),
    Row("guided_choice", ["a"]),
    Row("guided_grammar", 'root ::= "a"'),
    Row("something nobody documents", 1, IGNORED, "as OpenAI does"),
)

FIELDS: dict[str, tuple[Row, ...]] = {
    "/v1/chat/completions": (
        Row("model", "demo"),
        Row("messages", [{"role": "user", "content": [{"type": "text", "text": "Ho"}]}], note="text parts; others are refused"),
        *_SAMPLING,
        Row("max_tokens", 5),
        Row("max_completion_tokens", 5),
        Row("logprobs", True),
        Row("top_logprobs", 3, needs=(("logprobs", True),)),
        Row("response_format", {"type": "json_object"}, note="text, json_object, json_schema, grammar, regex, choice"),
        Row("tools", TOOLS, note="functions; custom tools are refused"),
        Row("tool_choice", {"type": "function", "function": {"name": "add"}}, note="none, auto, required, named, allowed_tools", needs=(("tools", TOOLS),)),
        Row("parallel_tool_calls", False),
        Row("reasoning_effort", "low", note="where the model's template takes it"),
        Row("verbosity", "low", REFUSED, "medium is taken"),
        Row("audio", {"voice": "x"}, REFUSED),
        Row("modalities", ["audio"], REFUSED, "text is taken"),
        Row("functions", [FUNCTION], REFUSED, "superseded by tools"),
        Row("function_call", "auto", REFUSED, "superseded by tool_choice"),
        Row("moderation", {"model": "x"}, REFUSED),
        Row("prediction", {"type": "content", "content": "x"}, REFUSED),
        Row("web_search_options", {}, REFUSED),
        Row("service_tier", "flex", REFUSED, "auto and default are taken"),
        Row("store", True, REFUSED, "false is taken: " + _NO_STORE),
        Row("metadata", {"a": "b"}, IGNORED, _NO_STORE),
        Row("safety_identifier", "x", IGNORED, _NO_USERS),
        Row("prompt_cache_key", "x", IGNORED, _BY_CONTENT),
        Row("prompt_cache_options", {"mode": "implicit"}, IGNORED, _BY_CONTENT),
        Row("prompt_cache_retention", "24h", IGNORED, _BY_CONTENT),
        *_EXTRA,
        Row("chat_template_kwargs", {"a": 1}),
        Row("reasoning", {"effort": "low"}),
        Row("continue_final_message", True),
        Row("include_reasoning", False, in_answer=True),
    ),
    "/v1/completions": (
        Row("model", "demo"),
        Row("prompt", [[1, 2], [3]], note="a text, token ids, up to 64 of either"),
        *_SAMPLING,
        Row("max_tokens", 5),
        Row("best_of", 2),
        Row("echo", True, note="with logprobs: those of the prompt too"),
        Row("logprobs", 2),
        Row("suffix", "x", note="where the model has fill-in-the-middle tokens"),
        *_EXTRA,
    ),
    "/v1/responses": (
        Row("model", "demo"),
        Row("input", [{"role": "user", "content": "Ho"}], note="messages, function calls and their outputs, reasoning"),
        Row("instructions", "x"),
        Row("max_output_tokens", 5),
        Row("temperature", 0.5),
        Row("top_p", 0.5),
        Row("top_logprobs", 2),
        Row("include", ["message.output_text.logprobs"], note="others are refused; encrypted reasoning is taken without effect"),
        Row("text", {"format": {"type": "json_object"}}),
        Row("reasoning", {"effort": "low"}),
        Row("tools", [{"type": "function", "name": "add", "parameters": {"type": "object"}}], note="functions"),
        Row("tool_choice", "none"),
        Row("parallel_tool_calls", False),
        Row("metadata", {"a": "b"}, in_answer=True),
        Row("background", True, REFUSED),
        Row("background_options", {"a": 1}, REFUSED),
        Row("conversation", "x", REFUSED, _NO_STORE),
        Row("previous_response_id", "x", REFUSED, _NO_STORE),
        Row("prompt", {"id": "x"}, REFUSED, _NO_STORE),
        Row("store", True, REFUSED, "false is taken: " + _NO_STORE),
        Row("context_management", [{"type": "compaction"}], REFUSED),
        Row("access_programs", ["x"], REFUSED),
        Row("image", {"a": 1}, REFUSED),
        Row("max_tool_calls", 1, REFUSED, "for tools of the server"),
        Row("moderation", {"model": "x"}, REFUSED),
        Row("truncation", "auto", REFUSED, "disabled is taken"),
        Row("service_tier", "flex", REFUSED, "auto and default are taken"),
        Row("stream_options", {"include_obfuscation": False}, IGNORED, "no padding is sent", needs=(("stream", True),)),
        Row("user", "u", IGNORED, _NO_USERS),
        Row("safety_identifier", "x", IGNORED, _NO_USERS),
        Row("prompt_cache_key", "x", IGNORED, _BY_CONTENT),
        Row("prompt_cache_options", {"mode": "implicit"}, IGNORED, _BY_CONTENT),
        Row("prompt_cache_retention", "24h", IGNORED, _BY_CONTENT),
    ),
    "/v1/messages": (
        Row("model", "demo"),
        Row("messages", [{"role": "user", "content": "Ho"}], note="text, thinking, tool_use, tool_result blocks"),
        Row("max_tokens", 7),
        Row("system", [{"type": "text", "text": "x"}]),
        Row("stop_sequences", ["x"]),
        Row("temperature", 0.5),
        Row("top_p", 0.5),
        Row("top_k", 5),
        Row("tools", [{"name": "add", "input_schema": {"type": "object"}}], note="tools of the server are refused"),
        Row("tool_choice", {"type": "none"}),
        Row("thinking", {"type": "enabled", "budget_tokens": 1024}, note="on or off; the budget is not kept"),
        Row("output_config", {"effort": "low"}),
        Row("output_format", {"type": "json_schema", "schema": {"type": "object"}}),
        Row("metadata", {"user_id": "x"}, IGNORED, _NO_USERS),
        Row("service_tier", "standard_only", IGNORED, "there is one tier"),
        Row("container", "x", REFUSED),
        Row("mcp_servers", [{"url": "x"}], REFUSED),
        Row("context_management", {"edits": []}, REFUSED),
    ),
    "/v1/embeddings": (
        Row("model", "demo"),
        Row("input", [[1, 2], [3]], note="a text, token ids, up to 512 of either; each no longer than the model takes"),
        Row("encoding_format", "base64", note="float, base64", in_answer=True),
        Row("dimensions", 2, note="the first values, scaled to length 1 again"),
        Row("user", "u", IGNORED, _NO_USERS),
    ),
    "/v1/rerank": (
        Row("model", "demo"),
        Row("query", "Ho!"),
        Row("documents", ["x", {"text": "y"}], note="up to 511 texts, or objects with a text; cut where they are too long"),
        Row("top_n", 1, in_answer=True),
        Row("return_documents", True, in_answer=True),
    ),
    "/api/chat": (
        Row("messages", [{"role": "user", "content": "Ho"}], note="content, thinking, tool_calls, tool_name, tool_call_id; images are refused"),
        Row("tools", TOOLS),
        *_OLLAMA,
    ),
    "/api/generate": (
        Row("prompt", "Ho"),
        Row("system", "x"),
        Row("raw", True),
        Row("suffix", "x", note="where the model has fill-in-the-middle tokens"),
        Row("template", "x", REFUSED, "a model has it: /api/create"),
        Row("context", [1], REFUSED, "send the conversation to /api/chat"),
        Row("images", ["aGk="], REFUSED),
        *_OLLAMA,
    ),
    "/api/embed": (
        Row("model", "demo"),
        Row("input", ["x", "y"]),
        Row("truncate", False, note="true unless it says false, as in Ollama"),
        Row("dimensions", 2),
        Row("keep_alive", "3m"),
        Row("options", {"num_ctx": 16}, IGNORED, "nothing of an encoder depends on them"),
    ),
    "/api/embeddings": (
        Row("model", "demo"),
        Row("prompt", "Ho"),
        Row("keep_alive", "3m"),
        Row("options", {"num_ctx": 16}, IGNORED, "nothing of an encoder depends on them"),
    ),
    "/api/show": (Row("model", "demo"), Row("verbose", True)),
    "/api/create": (
        Row("model", "new"),
        Row("from", "other"),
        Row("files", {"a.gguf": "sha256:" + "a" * 64}, note="GGUF files, or those of a Hugging Face folder"),
        Row("adapters", {"a": "sha256:" + "a" * 64}, note="LoRA in PEFT's form; merged"),
        Row("quantize", "q4_K_M", note="any recipe, from F32, F16, BF16, Q8_0 or safetensors"),
        Row("template", "{{ messages }}", note="Jinja; a Go template is kept and not used"),
        Row("system", "x"),
        Row("parameters", {"num_ctx": 64}),
        Row("messages", MESSAGES),
        Row("license", "x"),
        Row("stream", False, in_answer=True),
        Row("draft_files", {"a": "sha256:x"}, REFUSED),
        Row("draft_quantize", "q8_0", REFUSED),
        Row("renderer", "x", IGNORED, "the template renders"),
        Row("parser", "x", IGNORED, "the template says how calls look"),
        Row("requires", "0.1", IGNORED, "a version of Ollama"),
        Row("info", {"a": 1}, IGNORED, "for servers that do not read the file"),
    ),
    "/api/pull": (
        Row("model", "demo"),
        Row("stream", False, in_answer=True),
        Row("insecure", True, IGNORED, "the registry is the daemon's to choose"),
    ),
    "/api/copy": (Row("source", "other"), Row("destination", "other")),
    "/api/delete": (Row("model", "demo"),),
}  # fmt: skip
