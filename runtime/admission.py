"""What is refused before it is queued: requests that could never run, and sampling values that mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from runtime._native import Sampler
from runtime.constraint import ConstraintError
from runtime.errors import ContextLengthError, RequestError
from runtime.memory import RuntimeSettings
from runtime.request import Request
from runtime.sampling import SamplingParams
from runtime.step_plan import MAX_TOP_LOGPROBS, StepPlan, StepResult

SamplerFactory = Callable[[SamplingParams], Any]


class ModelSize(Protocol):
    """The part of runtime.model.ModelConfig that the engine reads."""

    @property
    def n_vocab(self) -> int: ...


class EngineModel(Protocol):
    """What the engine needs of a model; runtime.model.LoadedModel has it, and so have the fakes of the tests."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> ModelSize: ...
    @property
    def settings(self) -> RuntimeSettings: ...
    @property
    def page_tokens(self) -> int: ...
    @property
    def n_pages(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    def use_threads(self, n_threads: int, /) -> None: ...
    def step(self, plan: StepPlan, /) -> StepResult: ...


def native_sampler(params: SamplingParams) -> Any:
    """The sampler of the native core for these parameters."""
    return Sampler(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repeat_penalty=params.repeat_penalty,
        repeat_last_n=params.repeat_last_n,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=list(params.logit_bias),
        seed=params.seed,
        top_logprobs=-1 if params.top_logprobs is None else params.top_logprobs,
    )


def make_sampler(request: Request, factory: SamplerFactory) -> Any:
    """The request's sampler, which has seen the prompt where penalties look back; RequestError for bad values."""
    try:
        sampler = factory(request.sampling)
        if request.sampling.has_penalties:
            sampler.accept(list(request.prompt_ids))
        if request.constraint is not None:
            sampler.set_mask(request.constraint.mask())
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError("options.sampling", str(error)) from error
    except ConstraintError as error:
        raise RequestError("options.constraint", str(error)) from error
    return sampler


def check_request(request: Request, model: EngineModel) -> None:
    """Raise RequestError or ContextLengthError for a request that could never run on this model."""
    context_tokens, n_prompt = model.context_tokens, len(request.prompt_ids)
    n_vocab = model.config.n_vocab
    if not n_prompt:
        raise RequestError("prompt", "the prompt has no tokens; at least one is needed")
    if request.max_tokens < 1:
        raise RequestError("options.max_tokens", f"max_tokens is {request.max_tokens}; at least 1 is needed")
    if request.prompt_logprobs is not None and not 0 <= request.prompt_logprobs <= MAX_TOP_LOGPROBS:
        raise RequestError(
            "prompt_logprobs",
            f"prompt_logprobs is {request.prompt_logprobs}; 0 to {MAX_TOP_LOGPROBS} are possible",
        )
    if n_prompt >= context_tokens:
        raise ContextLengthError(
            "prompt",
            f"the prompt has {n_prompt} tokens; a session holds {context_tokens} tokens, prompt and answer together",
            prompt_tokens=n_prompt,
            context_tokens=context_tokens,
        )
    limit_tokens = n_prompt + request.max_tokens
    if limit_tokens > context_tokens:
        raise ContextLengthError(
            "options.max_tokens",
            f"the prompt has {n_prompt} tokens and max_tokens is {request.max_tokens}, together {limit_tokens};"
            f" a session holds {context_tokens} tokens",
            prompt_tokens=n_prompt,
            context_tokens=context_tokens,
        )
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= n_vocab:
        raise RequestError("prompt", f"a token id is outside of the vocabulary, which is 0 to {n_vocab - 1}")
    arena_tokens = model.n_pages * model.page_tokens
    if limit_tokens > arena_tokens:
        raise ContextLengthError(
            "options.max_tokens",
            f"prompt and max_tokens are {limit_tokens} tokens; the whole KV arena holds {arena_tokens}",
            prompt_tokens=n_prompt,
            context_tokens=arena_tokens,
        )
