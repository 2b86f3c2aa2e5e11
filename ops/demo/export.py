"""Write a trained checkpoint as an F16 GGUF file that carries tokenizer and chat template."""

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch
import vocabulary
from chat import CHAT_TEMPLATE, END_OF_TEXT, IM_END
from model import Config, Llama
from tokenizers import Tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a token that must exist."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return found


def write_gguf(path: Path, model: Llama, tokenizer: Tokenizer) -> None:
    """Write the model: matrices as float16, norms as float32, tied output left out."""
    c = model.c
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("quantd demo")
    w.add_author("quantd")
    w.add_description("Tiny demo model, trained from scratch on generated text")
    w.add_license("mit")
    w.add_languages(["en"])
    w.add_context_length(c.context)
    w.add_embedding_length(c.width)
    w.add_block_count(c.layers)
    w.add_feed_forward_length(c.hidden)
    w.add_head_count(c.heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_layer_norm_rms_eps(c.eps)
    w.add_rope_dimension_count(c.head_width)
    w.add_rope_freq_base(c.rope_base)
    w.add_vocab_size(c.vocab)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)

    tokens, merges = vocabulary.parts(tokenizer)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(tokens)
    w.add_token_types(vocabulary.token_types(tokens))
    w.add_token_merges([" ".join(m) for m in merges])
    w.add_bos_token_id(token_id(tokenizer, END_OF_TEXT))
    w.add_eos_token_id(token_id(tokenizer, IM_END))
    w.add_eot_token_id(token_id(tokenizer, IM_END))
    w.add_pad_token_id(token_id(tokenizer, END_OF_TEXT))
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)

    for name, p in model.named_parameters():
        kind = np.float16 if p.dim() == 2 else np.float32
        w.add_tensor(name, p.detach().numpy().astype(kind))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """Read the checkpoint and the tokenizer that train.py leaves in its work folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = Llama(Config(vocab=tokenizer.get_vocab_size()))
    model.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True))
    return model.eval(), tokenizer


def read_gguf(path: Path) -> tuple[Llama, Tokenizer]:
    """Read the weights and the tokenizer of an unquantized GGUF file that `write_gguf` wrote."""
    reader = gguf.GGUFReader(path)
    tokenizer = vocabulary.of_gguf({name: field.contents() for name, field in reader.fields.items()})
    model = Llama(Config(vocab=tokenizer.get_vocab_size()))
    model.load_state_dict({t.name: torch.from_numpy(t.data.astype(np.float32)) for t in reader.tensors})
    return model.eval(), tokenizer


def main() -> None:
    """Export the newest checkpoint of a work folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("work", type=Path, help="work folder of train.py")
    parser.add_argument("gguf", type=Path, help="file to write")
    args = parser.parse_args()
    write_gguf(args.gguf, *load(args.work))


if __name__ == "__main__":
    main()
