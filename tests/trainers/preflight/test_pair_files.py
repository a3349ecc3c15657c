"""Which columns hold what, and how texts are read, in a run of offline DPO: settings, presets, check before Ray."""

import pytest
from prepared import composed, given, prepare_offline

from verl_aiops.data import PreferenceDataError
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.data_settings import PairFiles
from verl_aiops.trainers.dpo.pairs import load_pairs

ROWS = [{"ask": f"question {at}?", "good": f"yes {at}", "bad": f"no {at}, sorry"} for at in range(8)]
KEYS = ["data.prompt_key=ask", "data.chosen_key=good", "data.rejected_key=bad"]


@pytest.fixture
def prepared(tiny_model_dir, write_rows, monkeypatch):
    """prepared(*overrides) -> the configuration of a run on `ROWS` with a preset, checked as before Ray."""
    from verl.utils import device

    from verl_aiops.platform import cluster

    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")
    monkeypatch.setattr(cluster, "existing_ray_address", lambda: None)

    def make(*overrides, rows=ROWS, preset="dpo"):
        least = [f"+verl_aiops={preset}", f"data.train_files={write_rows(rows)}", "data.train_batch_size=4"]
        overrides = [*least, f"actor_rollout_ref.model.path={tiny_model_dir}", *overrides]
        config = composed(*overrides)
        prepare_offline(config, given(overrides))
        return config

    return make


@pytest.mark.parametrize("plus", ["", "+"])
def test_columns_are_named_as_the_hint_says_with_or_without_a_plus(prepared, tokenizer, plus):
    config = prepared(*(f"{plus * ('prompt' not in key)}{key}" for key in KEYS))
    assert len(load_pairs(config.data, tokenizer, "train")) == 8


def test_texts_are_put_into_the_template_by_a_setting(prepared, tokenizer):
    pairs = {
        choice: load_pairs(prepared(*KEYS, f"data.text_pairs={choice}").data, tokenizer, "train")
        for choice in ("chat", "plain", "null")
    }
    assert pairs["chat"].report.notes == {"text_in_chat": 8} and pairs["plain"].report.notes == {"text_plain": 8}
    assert pairs["null"].report.notes == {"text": 8}
    assert pairs["plain"].identity() == pairs["null"].identity() != pairs["chat"].identity()


@pytest.mark.parametrize(
    "setting, said",
    [
        ("data.text_pairs=chats", "data.text_pairs='chats': expected one of chat, plain, or null"),
        ("data.label_key=3", "data.label_key=3: expected a text"),
    ],
)
def test_what_they_cannot_be_is_refused_before_ray(prepared, setting, said):
    with pytest.raises(ConfigError, match=said):
        prepared(*KEYS, setting)


def test_the_message_about_columns_names_settings_that_work(prepared):
    rows = [{"prompt": row["ask"], "choosen": row["good"], "rejected": row["bad"]} for row in ROWS]
    with pytest.raises(PreferenceDataError, match="did you mean data.chosen_key=choosen"):
        prepared(rows=rows)
    prepared("data.chosen_key=choosen", rows=rows)


def test_every_preset_of_pairs_knows_them():
    for preset in ("dpo", "kto"):
        data = composed(f"+verl_aiops={preset}").data
        assert all(data[name] is None for name in PairFiles.__dataclass_fields__)
