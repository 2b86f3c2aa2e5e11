"""Types of runtime._native, the C++ core.  One section per bind_<area>.cpp."""

from collections.abc import Sequence
from os import PathLike
from typing import TypeAlias, TypeVar

import numpy as np
from _typeshed import ReadableBuffer, WriteableBuffer
from numpy.typing import NDArray

# --- GGUF files (bind_gguf.cpp) ---------------------------------------------------------------------------------

_Event = TypeVar("_Event")
MetadataValue: TypeAlias = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

class GgufFile:
    """One GGUF file (one shard) over a read-only mapping; all metadata has been checked once it is there."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Raise ModelFormatError where the file is not sound GGUF, OSError where the system refuses."""

    @property
    def path(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def data_offset(self) -> int: ...
    def keys(self) -> list[str]:
        """Return the metadata keys in file order."""

    def kind(self, key: str) -> str:
        """Return the type of a value: "u32", "string", "array[string]"; KeyError when absent."""

    def get(self, key: str, max_elements: int | None = None) -> MetadataValue:
        """Convert one value, arrays (or their first max_elements) to lists; text with invalid UTF-8 uses surrogateescape; KeyError when absent."""

    def length(self, key: str) -> int:
        """Return the number of elements of an array without converting it, 1 for other values."""

    def offset(self, key: str) -> int:
        """Return the byte of the file at which the value lies."""

    def stored(self, key: str) -> bytes:
        """Return the value as it stands in the file: id of its kind (of an array: array, kind and number of elements), bytes."""

    def tensors(self) -> list[tuple[str, int, tuple[int, ...], int, int]]:
        """Return (name, type id, shape with the row length first, absolute offset, n_bytes) in file order."""

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return the (n_bytes,) read-only view of a tensor in the mapping; it keeps the file open."""

    def resident_bytes(self) -> int:
        """Return the bytes of the mapping that lie in memory now."""

    def poisoned(self) -> bool:
        """Say whether the file was truncated or unreadable under the mapping; its bytes then read as zero."""

    def changed(self) -> bool:
        """Say whether it is poisoned, or somebody wrote into the file since it was opened; one system call."""

def type_traits(type_id: int) -> tuple[str, int, int, bool]:
    """Return (name, elements of a block, bytes of a block, served as weight); ("?", 0, 0, False) if unknown."""

# --- Kernels by level, for tests and benchmarks (bind_kernels.cpp) ---------------------------------------------
# Arrays must be C-contiguous and of exactly the named dtype; anything else is a TypeError.  Wrong shapes, unknown
# levels and unknown types are a ValueError that says what was expected.

Floats: TypeAlias = NDArray[np.float32]
Bytes: TypeAlias = NDArray[np.uint8]

def kernel_levels() -> list[str]:
    """Names of the levels that this CPU can run, narrowest first: "scalar", "avx2", "avxvnni", "avx512vnni"."""

def kernel_level(name: str | None = None) -> str:
    """Return the level that runs: the named one, else $QUANTD_CPU_LEVEL, else the widest; ValueError if unknown here."""

def dequantize(type_name: str, data: Bytes, n: int, level: str | None = None) -> Floats:
    """Expand n elements of GGUF blocks (data) to (n) floats; level None means scalar."""

def quantize_activations(level: str, form: str, x: Floats) -> Bytes:
    """One activation row x (n) in the form "q8_32" or "q8_256", as the bytes that kernels.h describes."""

def matmul(
    level: str,
    type_name: str,
    weight: Bytes,
    n_out: int,
    n_in: int,
    x: Floats,
    out_begin: int = 0,
    out_end: int | None = None,
    bias: Floats | None = None,
    residual: Floats | None = None,
) -> Floats:
    """x (n_rows, n_in) times the transposed weight (n_out, n_in) in GGUF blocks: (n_rows, n_out).

    Outputs outside [out_begin, out_end) keep the residual (n_rows, n_out), or zero; bias is (n_out).
    """

def store_kv(level: str, x: Floats, kv_type: str) -> Bytes:
    """One key or value vector x (head_dim) as it is cached; kv_type "f16" or "q8_0"."""

def attention(
    level: str,
    q: Floats,
    k: Floats,
    v: Floats,
    kv_type: str,
    page_tokens: int = 32,
    scale: float | None = None,
    ends: list[int] | None = None,
    resume: int = 0,
    parts: bool = False,
    window: int = 0,
    softcap: float = 0.0,
) -> Floats:
    """Query rows q (n_rows, n_heads, head_dim) over k and v (n_positions, n_kv_heads, head_dim): the shape of q.

    scale None means 1 / sqrt(head_dim).  Row r sees positions [0, ends[r]), all of them by default; of them the last
    `window` ones, 0 all.  softcap bounds the scores' magnitude, 0 does not.  resume (a multiple of 256) computes the
    positions below it in a call of their own; parts computes each range of 256 apart and merges.
    """

def rms_norm(level: str, x: Floats, weight: Floats, eps: float) -> Floats:
    """x (n) over its root mean square, times weight (n)."""

def rope(level: str, x: Floats, cos: Floats, sin: Floats, interleaved: bool) -> Floats:
    """One head x (head_dim) rotated by the angles of cos and sin (n_rot / 2 each)."""

def layer_norm(level: str, x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """x (n) less its mean, over its standard deviation, times weight (n), plus bias (n)."""

def swiglu(level: str, gate: Floats, up: Floats) -> Floats:
    """silu(gate) * up, elementwise over (n)."""

def geglu(level: str, gate: Floats, up: Floats) -> Floats:
    """gelu(gate) * up with GELU's tanh form, elementwise over (n)."""

def gelu(level: str, x: Floats) -> Floats:
    """GELU's form with erf, elementwise over (n)."""

def soft_cap(level: str, x: Floats, scale: float, cap: float) -> Floats:
    """cap * tanh(scale * x / cap), elementwise over (n); scale * x where cap is 0."""

# --- Block encoders of the quantizer (bind_quantize.cpp) ----------------------------------------------------------

def quantize_rows(
    source: ReadableBuffer,
    source_type: int,
    n_rows: int,
    n_cols: int,
    target_type: int,
    out: WriteableBuffer,
    n_threads: int,
    level: str | None = None,
    importance: Floats | None = None,
) -> tuple[int, int, float] | None:
    """Encode rows of F32, F16 or BF16 into blocks of another type, on n_threads cores, without the GIL.

    importance (n_cols): mean square of the input that each column meets, finite and not negative; only ratios count.

    source and out are contiguous 1-D arrays of exactly the bytes of (n_rows, n_cols).  The same bytes come out for
    every thread count and CPU level.  Gives (row, column, value) of the first element that is not finite or beyond
    the type's range, with out unspecified, else None.  ValueError for wrong sizes, types or level.
    """

def encoding_loss(
    source: ReadableBuffer,
    source_type: int,
    n_rows: int,
    n_cols: int,
    target_type: int,
    out: ReadableBuffer,
    first_row: int,
    every_rows: int,
    level: str | None = None,
) -> tuple[float, float]:
    """Compare rows first_row, first_row + every_rows, ... with their blocks, without the GIL.

    Gives (sum of squared differences, sum of squared values) in float64, the same bits at every CPU level.  source and
    out as in quantize_rows; ValueError as there.
    """

def find_not_finite(source: ReadableBuffer, source_type: int) -> int:
    """Return the first element of F32, F16 or BF16 that is an infinity or a NaN, -1 where there is none; without the GIL."""

def new_buffer(n_bytes: int) -> memoryview:
    """Return n_bytes writable bytes of no particular value; the memory is kept for the next one, at most 32 MiB of it."""

# --- Error feedback of the quantizer (bind_feedback.cpp) -----------------------------------------------------------

class FeedbackFactors:
    """What the levels of a matrix are chosen by: the second moments of its input, damped and factorized."""

    def __init__(self, moments: Floats, n_cols: int, n_seen: int, n_threads: int) -> None:
        """moments (n_runs, 256, 256): sums of products of columns of `n_seen` inputs, on and above each diagonal; the last run
        may be narrower than 256.  The same factors for every thread count.  ValueError for wrong shapes, n_cols that is not a
        multiple of 32 and n_seen < 1.
        """

    @property
    def n_cols(self) -> int: ...

def feed_back(
    source: ReadableBuffer,
    source_type: int,
    n_rows: int,
    target_type: int,
    out: WriteableBuffer,
    factors: FeedbackFactors,
    n_threads: int,
    level: str | None = None,
) -> None:
    """Choose the levels of the blocks in `out` again, without the GIL: source and out as in quantize_rows.

    The same bytes for every thread count and CPU level.  ValueError as there, and for a type without levels.
    """

def has_levels(type_id: int) -> bool:
    """Say whether feed_back takes blocks of this type."""

# --- Tokenizers (bind_tokenizer.cpp) ------------------------------------------------------------------------------
# Texts are UTF-8 bytes (ValueError if not), ids are 0 to n_tokens - 1 (IndexError if not).

class Tokenizer:
    """Text to tokens and back, from a file's metadata; for any thread.  See native/tokenizer/tokenizer.h."""

    def __init__(
        self,
        file: GgufFile,
        *,
        kind: str,
        byte_level: bool = False,
        ignore_merges: bool = False,
        space_prefix: bool = False,
        squeeze_spaces: bool = False,
        unk_id: int = -1,
        patterns: list[str] = ...,
    ) -> None:
        """kind is "bpe", "sentencepiece", "unigram" or "word_piece"; ModelFormatError names the key."""

    def encode(
        self, text: bytes, *, specials: str = "none", prefix: bool = True, mark: bytes = b""
    ) -> list[int]:
        """Return token ids, computed without the GIL; specials to find: "none", "user_defined" or "all"."""

    def find_specials(self, text: bytes, *, specials: str, mark: bytes = b"") -> list[tuple[int, int, int]]:
        """Return (begin, end, id) of each special token, offsets in bytes."""

    def break_special(self, text: bytes, mark: bytes) -> bytes:
        """Put the mark before every place where the text of a control token begins."""

    def token_bytes(self, id: int) -> bytes:  # noqa: A002
        """Return the bytes that a token adds to a text."""

    def token_text(self, id: int) -> bytes:  # noqa: A002
        """Return the token as the file has it."""

    def find_text(self, text: bytes) -> int:
        """Return the first token that the file has as `text`, -1 if none is."""

    def special_ids(self) -> list[int]:
        """Return the control and user-defined tokens."""

    def all_token_bytes(self) -> list[bytes]: ...
    def types(self) -> bytes:
        """Return (n_tokens,) GGUF token types."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def num_byte_tokens(self) -> int:
        """Bytes that have a token of their own; 256: every text can be written."""

    @property
    def size_bytes(self) -> int: ...

def split_words(patterns: list[str], text: bytes) -> list[int]:
    """Return the ends, in bytes, of the words into which regexes cut a text, one after the other."""

# --- Sequences, their guesses, and steps of answers alone (bind_progress.cpp) -----------------------------------------

class Copier:
    """Guesses the next tokens of one sequence from its own text (runtime/speculation.py)."""

    def __init__(self, tokens: NDArray[np.int32], num_known: int, *, table_bits: int | None = None) -> None:
        """`tokens` (limit,) is the sequence's own array, of which the first `num_known` are known.

        ValueError where there are not so many; `table_bits`, 1 to 16, is chosen by the limit where it is None.
        """

    @property
    def num_known(self) -> int: ...
    @property
    def has_guess(self) -> bool:
        """True: there is a guess for the next token."""

    def follow(self) -> None:
        """Take in the token at `num_known` of the array; IndexError where the array ends before it."""

    def chances(self, most: int) -> list[float]:
        """Return for each of the next guesses, at most `most`: the chance that it and all before it are right."""

    def draft(self, most: int) -> list[int]:
        """Return the next `most` guesses in order, none without a guess; text that repeats itself is read on into them."""

    def tables(self) -> tuple[list[int], list[int]]:
        """Return copies of both tables: by the hash of an ending of 4 and of 2 tokens, the position behind it."""

def copier_table_bytes(limit_tokens: int) -> int:
    """Return the bytes of the tables of a copier for a sequence of at most `limit_tokens` tokens."""

def choose_drafts(candidates: list[tuple[Copier | None, int]], step_ms: list[float]) -> list[int]:
    """Return how many guesses each candidate's row should have behind it.

    candidates: who guesses and how many it may have; step_ms[n]: the time of a step with n rows more than candidates.
    """

class Progress:
    """What every token changes of a sequence: the base of runtime.request.Sequence, which says what the fields mean."""

    num_known: int
    num_computed: int
    num_drafted: int
    completion_tokens: int
    num_published: int
    paged_tokens: int
    publishes: bool
    is_running: bool
    copier: Copier | None

    def __init__(
        self, *, is_plain: bool, limit_tokens: int, page_tokens: int, stop_ids: list[int]
    ) -> None: ...
    @property
    def is_plain(self) -> bool: ...
    @property
    def limit_tokens(self) -> int: ...
    def hold(self, tokens: NDArray[np.int32]) -> None:
        """Use this array, which is written to, for its tokens; the copier, which reads the one before, is dropped."""

    def append_token(self, token_id: int) -> None:
        """Add a known token and let the copier follow; IndexError where the array has no room."""

RENEWED: int
RENEWED_WITH_GUESS: int
LEFT_PAGE_FULL: int
LEFT_UNTAKEN: int

def count_ready(running: Sequence[Progress]) -> int:
    """Return how many of a list want just their last known token computed."""

class PlanRows:
    """The arrays of a plan that a step of answers alone changes."""

    def __init__(self, tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """`tokens` and `positions`, both (max_step_rows,), are written to."""

    def renew(self, running: Sequence[Progress], last: Sequence[Progress]) -> int:
        """Write the wanted token of each sequence and its position; 0 where the step differs from that of `last` otherwise.

        It differs with another sequence, with a draft, or where a row lies beyond the `paged_tokens` of its sequence.
        RENEWED_WITH_GUESS: somebody has a guess for the token behind it; RENEWED: nobody has.
        """

def advance_all(
    sequences: Sequence[Progress],
    request_ids: list[str],
    token_ids: list[int],
    event_type: type[_Event],
) -> tuple[list[_Event], list[tuple[int, int]]]:
    """Take in one computed row of each sequence and the token that it gave.

    Returns an event_type(request id, token id, None, ()), a named tuple, for each, and (index, LEFT_ bits) of what is left
    to do.  LEFT_PAGE_FULL: a page is complete and not published.  LEFT_UNTAKEN: the token was not added, because there is
    none, it ends the sequence, or the sequence is not plain; its event is None.  RuntimeError, with nothing changed, for a
    sequence that does not run.
    """

# --- The step executor (bind_program.cpp) -----------------------------------------------------------------------

Int32: TypeAlias = NDArray[np.int32]

class ThreadPool:
    """Threads of the executor, the calling one included; they sleep when there is nothing to do."""

    def __init__(self, n_threads: int) -> None:
        """ValueError unless 1 <= n_threads <= 256."""

    @property
    def size(self) -> int: ...
    def use(self, n_threads: int) -> None:
        """Let only `n_threads` of them take part from now on, at least 1 and at most all; for any thread, at any time."""

class Arena:
    """All KV pages, mapped and touched at construction.

    kv_type is "f16", "q8_0" (head_dim a multiple of 32) or "f32" (slow; for comparing numbers with other programs).
    """

    def __init__(
        self, *, n_layers: int, n_kv_heads: int, head_dim: int, page_tokens: int, n_pages: int, kv_type: str
    ) -> None:
        """ValueError for a bad shape, MemoryError when the system refuses."""

    @property
    def page_bytes(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...

class Sampler:
    """How one session draws its tokens; the n-th draw depends on (seed, n) and the logits only."""

    def __init__(
        self,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: list[tuple[int, float]] = ...,
        seed: int = 0,
        top_logprobs: int = -1,
    ) -> None:
        """ValueError naming the setting that is out of its range.

        temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and the penalties' neutral values switch a rule off.
        repeat_last_n -1 looks back on everything (at most 65536 tokens).  top_logprobs -1 reports no log-probabilities,
        0 the drawn token's, n also those of the n best (at most 20).
        """

    def accept(self, token_ids: list[int]) -> None:
        """Feed the window of the penalties: the prompt, once.  Drawn tokens are accepted by the step itself."""

    def set_mask(self, mask: NDArray[np.uint32] | None) -> None:
        """Allow only the tokens whose bit is set (token t: bit t % 32 of word t // 32); None allows every token.

        (n_words,) holds for every draw until the next call; of (n_draws, n_words), row i holds for the i-th draw from
        now, and later draws find no token allowed.  n_words is ceil(n_vocab / 32); a step or sample() refuses another
        width with ValueError.  The array is copied: at most 1048576 words.  Neither bias nor penalties bring back a token
        that is excluded.  Where no token is allowed nothing is drawn: -1, and NO_TOKEN in the step's `outcomes`.
        """

    def sample(self, logits: Floats) -> int:
        """Draw from one row of logits (n_vocab) outside a step, and accept.

        -1 if a logit is not finite or the mask allows no token; nothing is accepted then.
        """

    @property
    def n_drawn(self) -> int: ...

class Program:
    """A compiled graph: built once, then run for a ragged batch of rows in one call.

    The building methods return indices or add one operation; they raise ValueError where widths or types do not fit.
    ropes are (frequencies in radians per position, magnitude), which `attention` names by their indices.
    """

    def __init__(
        self,
        pool: ThreadPool,
        arena: Arena,
        *,
        n_vocab: int,
        max_rows: int,
        ropes: list[tuple[list[float], float]],
        level: str | None = None,
    ) -> None: ...
    def buffer(self, name: str, width: int) -> int:
        """Add a buffer of activations (max_rows, width)."""

    def matrix(self, file: GgufFile, name: str, first_row: int = 0, n_rows: int | None = None) -> int:
        """Use a tensor (n_out, n_in), or some of its rows, where it lies in the mapped file.

        A tensor (n, n_out, n_in) is one of n * n_out rows.
        """

    def vector(self, file: GgufFile, name: str) -> int:
        """Use an F32 tensor (n,) where it lies in the mapped file."""

    def embed(self, *, table: int, out: int, scale: float = 1.0) -> None: ...
    def add_row(self, *, table: int, out: int, by_position: bool) -> None: ...
    def add(self, *, source: int, out: int, scale: float = 1.0) -> None: ...
    def layer_norm(self, *, source: int, weight: int, bias: int, out: int, eps: float) -> None: ...
    def gelu(self, *, buffer: int) -> None: ...
    def experts(
        self, *, source: int, router: int, gate: int, up: int, down: int, out: int, n_used: int
    ) -> None: ...
    def pool(self, *, source: int, kind: str) -> None: ...
    def rms_norm(self, *, source: int, weight: int, out: int, eps: float) -> None: ...
    def head_norm(self, *, buffer: int, weight: int, head_dim: int, eps: float) -> None: ...
    def linear(self, *, source: int, targets: list[tuple[int, int, int]], accumulate: bool) -> None:
        """targets: (weight, bias or -1, out) of each matrix that reads the input."""

    def gated_linear(self, *, source: int, gate: int, up: int, out: int, gelu: bool = False) -> None: ...
    def attention(
        self,
        *,
        q: int,
        k: int,
        v: int,
        out: int,
        layer: int,
        n_heads: int,
        interleaved: bool,
        scale: float,
        rope: int = 0,
        window: int = 0,
        softcap: float = 0.0,
        causal: bool = True,
    ) -> None: ...
    def select(self, *, source: int, out: int) -> None: ...
    def head(self, *, source: int, weight: int, scale: float = 1.0, softcap: float = 0.0) -> None: ...
    def finish(self) -> None:
        """Take all memory; from here on only step may be called."""

    def describe(self) -> str:
        """One line per operation."""

    @property
    def level(self) -> str: ...
    @property
    def scratch_bytes(self) -> int: ...
    def step(
        self,
        tokens: Int32,
        positions: Int32,
        seq_starts: Int32,
        page_starts: Int32,
        pages: Int32,
        out_rows: Int32,
        samplers: list[Sampler | None],
        targets: Int32,
        logits: Floats | None = None,
    ) -> tuple[list[int], Floats, Floats, Int32, Floats, Bytes]:
        """Run one step; the raw logits go to `logits` (n_out, n_vocab) if given.  Arrays as in runtime.step_plan.StepPlan, results in the order of StepResult.

        ValueError for an index out of range (nothing was touched), RuntimeError while another thread is in a step.
        """

    def collect_inputs(self) -> None:
        """From now on sum the squares of every matrix's input; ValueError before finish."""

    def input_statistics(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Return (sum of squares of each column (n_in,), rows seen) of the input of each matrix that was multiplied."""

    def collect_moments(self) -> dict[str, tuple[int, int]]:
        """Collect inputs, and from keep_moments on also their products of columns, in runs of 256.

        Gives (first run, number of runs) of each matrix but experts and the head; matrices of one input share their runs.
        ValueError before finish.
        """

    def keep_moments(self, sums: Floats) -> None:
        """Add to `sums` (n_runs, 256, 256) from now on, on and above each diagonal; ValueError for another shape."""

    def embed_step(
        self, tokens: Int32, positions: Int32, seq_starts: Int32, page_starts: Int32, pages: Int32
    ) -> Floats:
        """Run one step of whole sequences through a program that ends with `pool`: (n_seqs, width), rows of length 1."""
