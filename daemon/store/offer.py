"""What a place has of a model: the files to fetch, and what comes with them."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.store.download import Wanted


@dataclass(frozen=True, slots=True)
class Variant:
    """A quantization that a place offers."""

    quant: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one place."""

    weights: tuple[Wanted, ...]
    source: str  # in words
    quant: str = ""
    variants: tuple[Variant, ...] = ()  # everything that the place has, this one included
    template: Wanted | None = None  # a Go template or a Jinja template
    system: Wanted | None = None
    parameters: Wanted | None = None
    messages: Wanted | None = None  # that go before every conversation
    licenses: tuple[Wanted, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        """Of the weights."""
        return sum(wanted.size_bytes for wanted in self.weights)

    @property
    def texts(self) -> list[Wanted]:
        """Everything but the weights."""
        single = [self.template, self.system, self.parameters, self.messages]
        return [*(wanted for wanted in single if wanted is not None), *self.licenses]
