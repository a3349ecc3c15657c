"""A tokenizer that does not give back the text it was given is refused before anything is trained with it."""

import json

import pytest
from tiny import make_tokenizer

from verl_aiops.data.errors import PreferenceDataError
from verl_aiops.data.kept_text import check_keeps_text, lost_text
from verl_aiops.data.rendering import PairRenderer
from verl_aiops.data.rows import Columns, parse_row

WORDS = "which service is at fault?\nanswer: \t{'a':  1}  Ünïcode 服务"


@pytest.fixture
def renamed(tmp_path):
    """A byte-level BPE whose folder names another class, whose loading gives it another pre-tokenizer."""
    from transformers import AutoTokenizer

    make_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return AutoTokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_that_keeps_text_passes(tokenizer):
    assert lost_text(tokenizer, WORDS) is None
    check_keeps_text(tokenizer, [WORDS] * 100)


def test_lost_white_space_is_found_and_shown(renamed):
    before, after = lost_text(renamed, WORDS)
    assert "which service" in before and "whichservice" in after
    with pytest.raises(PreferenceDataError, match="loses text: 'which service.*tokenizer_class"):
        check_keeps_text(renamed, ["which service?"])
    with pytest.raises(PreferenceDataError, match="loses text"):
        check_keeps_text(renamed, ["word"])  # also where the data hold none of what is lost


@pytest.mark.parametrize(
    "normalise, lost", [("Lowercase", True), ("NFC", False), ("NFKC", False), ("StripAccents", True)]
)
def test_normalisation_is_no_loss_but_of_letters(normalise, lost):
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    parts = [normalizers.NFD()] if normalise == "StripAccents" else []
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([*parts, getattr(normalizers, normalise)()])
    assert (lost_text(tokenizer, "Über ＡＢ " + WORDS) is not None) == lost


@pytest.mark.parametrize("prompt", ["which service?", [{"role": "user", "content": "which service?"}]])
def test_pairs_are_refused(renamed, prompt):
    row = parse_row({"prompt": prompt, "chosen": "cart db", "rejected": "no idea"}, Columns())
    with pytest.raises(PreferenceDataError, match="loses text"):
        PairRenderer(renamed).encode([row])


def test_what_a_tokenizer_does_not_know_and_says_so_is_no_loss():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert lost_text(tokenizer, "a ? b") is None
    assert lost_text(tokenizer, "a\nb") is not None
