"""How byte-level BPE vocabularies cut text into words before merging, by `tokenizer.ggml.pre`.

Each family is a sequence of regexes; every one cuts the pieces that the one before left.  They are the regexes of the
models' own published tokenizers, in Oniguruma's syntax, of which runtime/native/tokenizer/pattern.h names the part that is
read; three that group digits from the right are known there as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",)
_LLAMA3 = (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _TAIL,)
_QWEN2 = (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL,)
_STARCODER = (r"\p{N}", *_GPT2)
_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", *_GPT2, r"[0-9][0-9][0-9]")
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", *_GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|"
    + _TAIL_SLASH,
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|" + _TAIL_SLASH,
)
_QWEN35 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_MARKED_LETTER = r"(?:(?=[\p{L}\p{M}])[^a-z])"  # what is no ASCII lower case counts as upper case here, and
_MARKED_LOWER = r"(?:(?=[\p{L}\p{M}])[^A-Z])"  # the other way round
_GRANITE_MULTILINGUAL = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_MARKED_LETTER}*{_MARKED_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_MARKED_LETTER}+{_MARKED_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|" + _TAIL_SLASH,
)
# Runs of spaces are cut at powers of two.
_JAIS2 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}",
)
_BLOOM = (" ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+",)
_VIKING = (*_BLOOM, r"\p{N}")
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    *_GPT2,
)
_BAILINGMOE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
)
_SEED_CODER = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_UFAKZEKA = (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _TAIL,)
_LAGUNA = (r"[^\n]+|[\n]+", *_QWEN2)
_EXAONE_MOE = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}(?:[\p{L}\p{M}]| \p{L})*+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]"
    + r"|\s+(?!\S)|\s+",
)
_MINICPM5 = (r"\p{N}{1,3}", _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|" + _TAIL)
# Chinese runs, then words in which they take no part.
_NOT_HAN_UPPER = r"(?:(?!\p{Han})[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}])"
_NOT_HAN_LOWER = r"(?:(?!\p{Han})[\p{Ll}\p{Lm}\p{Lo}\p{M}])"
_KIMI_K2 = (
    rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}]?{_NOT_HAN_UPPER}*{_NOT_HAN_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_HAN_UPPER}+{_NOT_HAN_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|" + _TAIL,
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The letters of deepseek-llm: Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, Coptic, Deseret and
# other cased scripts; what \p{L} has beyond them (CJK, Arabic, Thai, ...) goes through the other rules.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
_DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_DEEPSEEK3 = (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3_WORDS)
_SPARK_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"""
)
_SPARK = (
    *_DEEPSEEK3[:2],
    _SPARK_WORDS,
    r"\p{N}",
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_YOUTU_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|"
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}|" + _TAIL_SLASH
)
_YOUTU = (_YOUTU_SCRIPTS, _YOUTU_WORDS)
# Digits in threes from the right: 12345 is 12 and 345.
_TINY_AYA = (r"\d{1,3}(?=(?:\d{3})*\b)", *_GPT4O)
_SUPERBPE = (r"\p{N}+", r"(?=(\d{3})+(?!\d))")
_AFMOE = (
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    (
        "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
        "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
    ),
    _DEEPSEEK3_WORDS,
)
_LINES = (r"[^\n]+|[\n]+",)


@dataclass(frozen=True)
class PreTokenizer:
    """Regexes in order; `ignore_merges`: a word that is a token is taken whole; `add_bos`: the family's default.

    `byte_level` False: tokens are raw UTF-8 in which U+2581 stands for a space, and bytes have tokens such as <0x41>.
    """

    regexes: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    add_sep: bool = False  # a separator ends every text, unless the file says otherwise
    byte_level: bool = True
    forces_bos: bool = False  # files that say otherwise are wrong


# Not here: "whitespace", which drops the spaces of a text, so that nothing comes back as it was.
_LLAMA3_NAMES = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"
_GPT2_NAMES = (
    "gpt-2 phi-2 olmo mpt jais gigachat mellum exaone4 trillion granite-docling a.x-4.0 modern-bert"
    " jina-es jina-de jina-v2-es jina-v2-de"
)
_FAMILIES: tuple[tuple[PreTokenizer, str], ...] = (
    (PreTokenizer(_LLAMA3, ignore_merges=True, add_bos=True), _LLAMA3_NAMES),
    (PreTokenizer(_LLAMA3), "dbrx smaug-bpe chatglm-bpe"),
    (PreTokenizer(_LLAMA3, ignore_merges=True), "glm4 glm5"),
    (PreTokenizer(_QWEN2), "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2"),
    (PreTokenizer(_QWEN35), "qwen35"),
    (PreTokenizer(_GPT2), _GPT2_NAMES),
    (PreTokenizer(_GPT2, add_sep=True), "jina-v1-en jina-v2-code roberta-bpe"),
    (PreTokenizer(_STARCODER), "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2"),
    (PreTokenizer(_FALCON), "falcon"),
    (PreTokenizer(_DEEPSEEK_LLM), "deepseek-llm"),
    (PreTokenizer(_DEEPSEEK_CODER), "deepseek-coder"),
    (PreTokenizer(_DEEPSEEK3), "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (PreTokenizer(_SPARK), "spark2_5"),
    (PreTokenizer(_YOUTU, ignore_merges=True), "youtu"),
    (PreTokenizer(_TEKKEN, ignore_merges=True, add_bos=True), "tekken"),
    (PreTokenizer(_GPT4O), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer(_GRANITE_MULTILINGUAL, ignore_merges=True), "granite-embed-multi-97m"),
    (PreTokenizer(_KIMI_K2), "kimi-k2"),
    (PreTokenizer(_JAIS2), "jais-2"),
    (PreTokenizer(_BLOOM), "poro-chat bloom gpt3-finnish"),
    (PreTokenizer(_VIKING), "viking"),
    (PreTokenizer(_CHAMELEON, add_bos=True), "chameleon"),
    (PreTokenizer(_BAILINGMOE), "bailingmoe bailingmoe2 llada-moe"),
    (PreTokenizer(_SEED_CODER), "seed-coder"),
    (PreTokenizer(_UFAKZEKA), "ufakzeka"),
    (PreTokenizer(_LAGUNA), "laguna"),
    (PreTokenizer(_EXAONE_MOE), "exaone-moe"),
    (PreTokenizer(_MINICPM5, ignore_merges=True), "minicpm5"),
    (PreTokenizer(_TINY_AYA), "tiny_aya cohere2moe"),
    (PreTokenizer(_SUPERBPE), "superbpe"),
    (PreTokenizer(_AFMOE), "afmoe"),
    (
        PreTokenizer(_LINES, byte_level=False, add_bos=True, forces_bos=True),
        "gemma4 granite-embed-multi-311m",
    ),
    (PreTokenizer(_LINES, byte_level=False), "sarvam-moe"),
    (PreTokenizer(_DEFAULT), "default"),
)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: pre for pre, names in _FAMILIES for name in names.split()}
