"""Reference log-probs on disk: what is found again, what must not be, and what a pass over the data computes."""

import dataclasses
import errno
import hashlib
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from verl_aiops.files import default_cache_dir
from verl_aiops.trainers.config import DPOConfig
from verl_aiops.trainers.dpo.pairs import PairOrder, arrange, load_pairs, pair_batch, pair_tokens
from verl_aiops.trainers.reference import scorer as reference_pass
from verl_aiops.trainers.reference.cache import ReferenceCache, ReferenceIdentity, weights_digest
from verl_aiops.trainers.reference.scorer import ReferenceScorer

IDENTITY = ReferenceIdentity(
    weights="aa" * 32,
    model_dtype="fp32",
    compute_dtype="bf16",
    backend="rows",
    attention="sdpa",
    layers="fused",
    packed=False,
    sequence_parallel=1,
    model_overrides="{}",
    device="cuda",
)


def _answers(*numbers):
    """{key: made-up log-probs} of answers of 1 to 5 tokens."""
    return {bytes([n]) * 32: -np.random.default_rng(n).random(1 + n % 5).astype(np.float32) for n in numbers}


def _filled(root, answers, identity=IDENTITY):
    cache = ReferenceCache(str(root), identity)
    for key, log_probs in answers.items():
        cache.put(key, log_probs)
    cache.save()
    return cache


# --- files ---------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_found_again_bit_for_bit(tmp_path):
    answers = _answers(1, 2, 3)
    _filled(tmp_path, answers)
    cache = ReferenceCache(str(tmp_path), IDENTITY)
    assert cache.load(set(answers)) == 3
    for key, before in answers.items():
        assert key in cache and cache[key].dtype == np.float32
        np.testing.assert_array_equal(cache[key], before)


def test_parts_of_pairs_that_an_earlier_version_wrote_are_read(tmp_path):
    """By the digests of pairs that they know, which are asked for there alone."""
    folder = _filled(tmp_path, _answers(1)).folder
    asked = []

    def pairs():
        asked.append(True)
        return {b"p" * 32: (bytes([2]) * 32, bytes([3]) * 32), b"q" * 32: (bytes([1]) * 32, bytes([4]) * 32)}

    assert ReferenceCache(str(tmp_path), IDENTITY).load(set(_answers(1, 2, 3)), pairs) == 1 and not asked
    numbers = pa.list_(pa.float32())
    schema = pa.schema([("pair", pa.binary()), ("chosen", numbers), ("rejected", numbers)])
    sides = {"chosen": [[-1.5, -2.5], [-7.0]], "rejected": [[-3.5], [-8.0]]}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"pair": [b"p" * 32, b"other" * 6], **sides}, schema=schema), sink)
    content = sink.getvalue().to_pybytes()
    (folder / f"part-{hashlib.sha256(content).hexdigest()[:32]}.parquet").write_bytes(content)
    cache = ReferenceCache(str(tmp_path), IDENTITY)
    assert cache.load(set(_answers(1, 2, 3, 4)), pairs) == 3 and asked == [True]
    assert [cache[bytes([n]) * 32].tolist() for n in (2, 3)] == [[-1.5, -2.5], [-3.5]]
    assert cache[bytes([2]) * 32].dtype == np.float32 and bytes([4]) * 32 not in cache


def test_only_wanted_answers_are_read_and_missing_ones_are_not_counted(tmp_path):
    _filled(tmp_path, _answers(1, 2, 3))
    cache = ReferenceCache(str(tmp_path), IDENTITY)
    (two,), (nine,) = _answers(2), _answers(9)
    assert cache.load({two, nine}) == 1
    assert two in cache and nine not in cache and next(iter(_answers(1))) not in cache


def test_each_save_adds_one_part_with_what_is_new(tmp_path):
    cache = _filled(tmp_path, _answers(1, 2))
    cache.save()
    assert len(list(cache.folder.glob("part-*"))) == 1
    for key, log_probs in _answers(1, 3).items():
        cache.put(key, log_probs)
    cache.save()
    assert len(list(cache.folder.glob("part-*"))) == 2
    assert ReferenceCache(str(tmp_path), IDENTITY).load(set(_answers(1, 2, 3))) == 3
    assert [p.name for p in cache.folder.iterdir() if p.name.startswith(".")] == []


def test_what_is_there_is_never_replaced(tmp_path):
    ((key, log_probs),) = _answers(1).items()
    cache = _filled(tmp_path, {key: log_probs})
    cache.put(key, log_probs - 1)
    np.testing.assert_array_equal(cache[key], log_probs)


def test_a_write_that_is_cut_short_leaves_no_part(tmp_path, monkeypatch):
    """A part appears under its name only when it is whole, as renaming is the last thing done."""

    def killed(source, target):
        raise KeyboardInterrupt

    _filled(tmp_path, _answers(1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("verl_aiops.files.os.replace", killed)
        patch.setattr("verl_aiops.files.remove", lambda path: None)  # who is killed does not clean up
        _filled(tmp_path, _answers(2, 3))
    after = ReferenceCache(str(tmp_path), IDENTITY)
    assert len(list(after.folder.glob(".part-*"))) == 1  # the leftover
    assert after.load(set(_answers(1, 2, 3))) == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_a_damaged_part_is_named_and_computed_again(tmp_path, damage, caplog):
    """A cache holds nothing that cannot be had again: what is damaged costs time, not the run."""
    cache = _filled(tmp_path, _answers(1, 2))
    _filled(tmp_path, _answers(3))
    part = max(cache.folder.glob("part-*"), key=lambda path: path.stat().st_size)
    content = part.read_bytes()
    part.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "overwritten": b"x" * 100}[damage])
    again = ReferenceCache(str(tmp_path), IDENTITY)
    assert again.load(set(_answers(1, 2, 3))) == 1
    assert str(part) in caplog.text and "damaged" in caplog.text and "computed again" in caplog.text
    assert not part.exists() and part.with_name(f"{part.name}.damaged").exists()
    _filled(tmp_path, _answers(1, 2))
    caplog.clear()
    assert ReferenceCache(str(tmp_path), IDENTITY).load(set(_answers(1, 2, 3))) == 3 and not caplog.text


def test_no_flipped_bit_gives_other_numbers(tmp_path):
    """Header, pages and footer alike; parquet's own checksums cover the pages alone."""
    pairs = _answers(*range(1, 9))
    (part,) = _filled(tmp_path, pairs).folder.glob("part-*")
    content = part.read_bytes()
    for at in range(0, len(content)):
        bad = bytearray(content)
        bad[at] ^= 1 << at % 8
        part.write_bytes(bad)
        cache = ReferenceCache(str(tmp_path), IDENTITY)
        assert cache.load(set(pairs)) == 0, at
        part.with_name(f"{part.name}.damaged").unlink()
    part.write_bytes(content)
    assert ReferenceCache(str(tmp_path), IDENTITY).load(set(pairs)) == 8


def test_parts_carry_parquets_checksums_too(tmp_path):
    """For other readers: one of them must see a flipped bit in the numbers without our file names."""
    (part,) = _filled(tmp_path, _answers(*range(1, 9))).folder.glob("part-*")
    content = bytearray(part.read_bytes())
    content[pq.ParquetFile(part).metadata.row_group(0).column(1).data_page_offset + 60] ^= 4
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(bytes(content)), page_checksum_verification=True)


def test_parts_without_a_checksum_are_not_used(tmp_path, caplog):
    folder = ReferenceCache(str(tmp_path), IDENTITY).folder
    ((key, log_probs),) = _answers(1).items()
    pq.write_table(pa.table({"answer": [key], "log_probs": [log_probs]}), folder / "part-0123456789abcdef.parquet")
    assert ReferenceCache(str(tmp_path), IDENTITY).load({key}) == 0
    assert "1 part(s) of an earlier version have no checksum" in caplog.text


def test_a_place_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = _filled(tmp_path / "file" / "cache", _answers(1))
    (key,) = _answers(1)
    assert key in cache and cache.load({key}) == 1
    assert caplog.text.count("cannot be written") == 1 and "for this run only" in caplog.text


def test_a_full_disk_costs_a_warning(tmp_path, caplog, monkeypatch):
    cache = _filled(tmp_path, _answers(1))

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("verl_aiops.files.os.fsync", full)
    for number in (2, 3):
        for key, log_probs in _answers(number).items():
            cache.put(key, log_probs)
        cache.save()
        assert key in cache
    assert caplog.text.count("no space left on device") == 1
    assert len(list(cache.folder.iterdir())) == 2  # the note and the first part


def test_the_users_home_is_understood_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VERL_AIOPS_CACHE", "~/my cache")
    assert default_cache_dir("tokens") == f"{tmp_path}/my cache/tokens"


# --- identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ReferenceIdentity)])
def test_every_part_of_the_identity_has_its_own_numbers(tmp_path, field):
    value = getattr(IDENTITY, field)
    changed = {bool: lambda: not value, int: lambda: value + 1, str: lambda: value + "x"}[type(value)]()
    other = dataclasses.replace(IDENTITY, **{field: changed})
    assert other.digest() != IDENTITY.digest()
    _filled(tmp_path, _answers(1))
    assert ReferenceCache(str(tmp_path), other).load(set(_answers(1))) == 0
    assert ReferenceCache(str(tmp_path), IDENTITY).load(set(_answers(1))) == 1


def test_the_folder_says_whose_numbers_it_holds(tmp_path):
    cache = _filled(tmp_path, _answers(1))
    assert json.loads((cache.folder / "identity.json").read_text()) == dataclasses.asdict(IDENTITY)


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("VERL_AIOPS_CACHE", str(tmp_path))
    assert default_cache_dir("reference") == str(tmp_path / "reference")
    monkeypatch.delenv("VERL_AIOPS_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir("reference") == str(tmp_path / "home" / ".cache" / "verl-aiops" / "reference")


def _model_folder(folder, *, value=0.0, **config):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((4,), value)}, folder / "model.safetensors")
    settings = {"hidden_size": 4, "rope_theta": 1e4, "transformers_version": "5.0"}
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return weights_digest(str(folder))


def test_the_weights_digest_follows_weights_and_what_shapes_the_numbers(tmp_path):
    plain = _model_folder(tmp_path / "a")
    assert _model_folder(tmp_path / "copy") == plain
    assert _model_folder(tmp_path / "b", value=1e-7) != plain
    assert _model_folder(tmp_path / "c", rope_theta=1e5) != plain
    assert _model_folder(tmp_path / "d", transformers_version="5.1") == plain


def test_files_beside_the_weights_do_not_count(tmp_path):
    plain = _model_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    assert weights_digest(str(tmp_path)) == plain
    save_file({"v": torch.zeros(1)}, tmp_path / "model-2.safetensors")
    assert weights_digest(str(tmp_path)) != plain


def test_a_folder_without_weights_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="no weight files"):
        weights_digest(str(tmp_path))


# --- the pass over the data ----------------------------------------------------------------------------------------


class _Workers:
    """Workers whose log-probs are a function of a row's tokens; remembers which pairs they were asked for."""

    def __init__(self, shift=0.0):
        self.shift, self.batches = shift, []

    def reference_log_probs(self, batch):
        rows = list(zip(batch["input_ids"].unbind(), batch["responses"].unbind(), strict=True))
        self.batches.append([bytes(row.numpy().tobytes()) for row, _ in rows])
        values = [-1.0 - (answer % 7).float() - 0.01 * len(row) + self.shift for row, answer in rows]
        return {"answer_log_probs": torch.nested.as_nested_tensor(values, layout=torch.jagged)}

    @property
    def pairs(self):
        return sum(len(batch) for batch in self.batches) // 2


class _Trainer:
    """What the scorer asks of its trainer, for 2 data-parallel ranks and mini-batches of 4 pairs."""

    mini_pairs, ranks = 4, 2

    def __init__(self, model, root, tokenizer, train, val=None, *, learning_rate=1e-6, output="out", **dpo):
        data = {"max_prompt_length": 64, "max_response_length": 64, "truncation": "error", "shuffle": True}
        data = OmegaConf.create({**data, "seed": 3, "apply_chat_template_kwargs": None, "train_files": train})
        data.val_files = val
        self.dpo = DPOConfig.from_config({"reference_cache_dir": str(root), "logprob_backend": "rows", **dpo})
        self.train_dataset = load_pairs(data, tokenizer, "train")
        self.val_dataset = load_pairs(data, tokenizer, "val") if val else None
        numbers = self.train_dataset.prompt_numbers
        self.train_dataloader = PairOrder(len(numbers), 4, seed=3, shuffle=True, data_digest="", prompts=numbers)
        engine = {"model_dtype": "fp32", "mixed_precision": {"param_dtype": "fp32"}, "use_torch_compile": False}
        model = {"path": str(model), "use_shm": False, "use_remove_padding": False, "override_config": {}}
        model["use_liger"] = False
        actor = {"fsdp_config": engine, "optim": {"lr": learning_rate}}
        self.config = OmegaConf.create(
            {
                "actor_rollout_ref": {"model": model, "actor": actor},
                "trainer": {"device": "cpu", "default_local_dir": output},
            }
        )

    def arranged(self, dataset, indices, mini_pairs):
        return np.asarray(indices)[arrange(pair_tokens(dataset)[indices].tolist(), mini_pairs, self.ranks)]

    def build_batch(self, dataset, indices, *, mini_pairs, with_reference):
        assert not with_reference and len(indices) == mini_pairs == self.mini_pairs
        return pair_batch([dataset[int(i)] for i in indices], mini_pairs=mini_pairs, ranks=self.ranks)


def _rows(*numbers):
    return [{"prompt": f"question {n}?", "chosen": f"yes {n}", "rejected": f"no {n}, sorry"} for n in numbers]


@pytest.fixture
def start(tmp_path, tokenizer, write_rows):
    """start(train=rows, val=rows, **settings) -> (scorer, trainer) on one model and one cache folder."""
    model = tmp_path / "model"
    _model_folder(model)

    def make(train, val=None, *, weights=None, **settings):
        if weights is not None:
            _model_folder(model, value=weights)
        files = [write_rows(rows, name) if rows else None for rows, name in ((train, "t.jsonl"), (val, "v.jsonl"))]
        trainer = _Trainer(model, tmp_path / "cache", tokenizer, *files, **settings)
        return ReferenceScorer(trainer), trainer

    return make


def test_every_pair_is_scored_once_and_looked_up_by_its_index(start):
    scorer, trainer = start(_rows(*range(10)))
    assert scorer.metrics == {"reference/cache_hits": 0, "reference/cache_misses": 10}
    workers = _Workers()
    scorer.fill(workers)
    assert workers.pairs == 12  # the last batch of 2 pairs is filled up to the shape of all batches
    for index, (chosen, rejected) in enumerate(scorer.lookup(trainer.train_dataset, range(10))):
        item = trainer.train_dataset[index]
        for side, values in (("chosen", chosen), ("rejected", rejected)):
            length = len(item["prompt_ids"]) + len(item[f"{side}_ids"])
            np.testing.assert_allclose(values, -1.0 - (item[f"{side}_ids"] % 7).numpy() - 0.01 * length, rtol=1e-6)


def test_batches_are_scored_as_the_first_epoch_will_see_them(start):
    scorer, trainer = start(_rows(*range(12)))
    workers = _Workers()
    scorer.fill(workers)
    for number, seen in enumerate(workers.batches):
        indices = trainer.arranged(trainer.train_dataset, trainer.train_dataloader.step(1 + number), 4)
        batch = trainer.build_batch(trainer.train_dataset, indices, mini_pairs=4, with_reference=False)
        assert seen == [row.numpy().tobytes() for row in batch["input_ids"].unbind()]


def test_a_second_run_finds_all_and_another_learning_rate_or_folder_too(start):
    scorer, _ = start(_rows(*range(8)), _rows(8, 9))
    scorer.fill(_Workers())
    again, trainer = start(_rows(*range(8)), _rows(8, 9), learning_rate=1e-3, output="elsewhere", beta=0.5)
    assert again.metrics == {"reference/cache_hits": 10, "reference/cache_misses": 0}
    workers = _Workers()
    again.fill(workers)
    assert workers.pairs == 4  # the sample that is compared; nothing else
    assert not again.complete_without_model()
    unchecked, _ = start(_rows(*range(8)), _rows(8, 9), reference_verify_pairs=0)
    assert unchecked.complete_without_model()
    workers = _Workers()
    unchecked.fill(workers)
    assert workers.pairs == 0


def test_new_pairs_and_another_order_compute_only_what_is_missing(start):
    first, _ = start(_rows(*range(8)))
    first.fill(_Workers())
    scorer, trainer = start(_rows(*range(100, 104), *reversed(range(8))), reference_verify_pairs=0)
    assert scorer.metrics == {"reference/cache_hits": 8, "reference/cache_misses": 4}
    scorer.fill(_Workers(shift=-5.0))  # what these workers give is told from what the cache holds
    means = [float(chosen.mean()) for chosen, _ in scorer.lookup(trainer.train_dataset, range(12))]
    assert max(means[:4]) < -6 < min(means[4:])
    final, _ = start(_rows(*range(100, 104), *range(8)))
    assert final.metrics["reference/cache_misses"] == 0


@pytest.mark.parametrize("changed", ["weights", "text"])
def test_other_weights_or_another_text_miss(start, changed):
    first, _ = start(_rows(*range(4)))
    first.fill(_Workers())
    rows = _rows(*range(4))
    if changed == "text":
        rows = [{**row, "prompt": row["prompt"] + " Be brief."} for row in rows]
    scorer, _ = start(rows, weights=1.0 if changed == "weights" else None)
    assert scorer.metrics == {"reference/cache_hits": 0, "reference/cache_misses": 4}


def test_a_pair_of_train_and_val_is_computed_once(start):
    scorer, trainer = start(_rows(0, 1, 2, 3), _rows(3, 2, 1, 0))
    assert scorer.metrics == {"reference/cache_hits": 0, "reference/cache_misses": 4}
    workers = _Workers()
    scorer.fill(workers)
    assert workers.pairs == 4
    train, val = (scorer.lookup(data, range(4)) for data in (trainer.train_dataset, trainer.val_dataset))
    for (chosen, _), (same, _) in zip(train, reversed(val), strict=True):
        np.testing.assert_array_equal(chosen, same)


def test_each_answer_is_scored_once_however_many_pairs_it_is_in(start):
    answers = [f"answer {n}" for n in range(4)]
    rows = [{"prompt": "which?", "chosen": a, "rejected": b} for a, b in itertools.combinations(answers, 2)]
    scorer, trainer = start([*rows, *_rows(1, 2)])
    assert scorer.metrics["reference/cache_misses"] == 8
    scorer.fill(_Workers())
    assert len(scorer.cache._rows) == 4 + 4
    # the same answers in another comparison are known, and so is a pair that is turned around
    other = [{"prompt": "which?", "chosen": b, "rejected": a} for a, b in itertools.combinations(answers, 2)]
    again, _ = start([*other, *_rows(1, 2)])
    assert again.metrics == {"reference/cache_hits": 8, "reference/cache_misses": 0}
    for pair, (chosen, rejected) in zip(rows, scorer.lookup(trainer.train_dataset, range(6)), strict=True):
        item = trainer.train_dataset[rows.index(pair)]
        for side, values in (("chosen", chosen), ("rejected", rejected)):
            length = len(item["prompt_ids"]) + len(item[f"{side}_ids"])
            np.testing.assert_allclose(values, -1.0 - (item[f"{side}_ids"] % 7).numpy() - 0.01 * length, rtol=1e-6)


def test_a_cache_of_pairs_saves_a_pass_over_the_same_pairs(start):
    """As an earlier version has written it, keyed by the pairs' tokens and masks."""
    scorer, trainer = start(_rows(*range(4)))
    numbers = pa.list_(pa.float32())
    schema = pa.schema([("pair", pa.binary()), ("chosen", numbers), ("rejected", numbers)])
    items = [trainer.train_dataset[at] for at in range(4)]
    columns = {side: [[-1.0] * len(item[f"{side}_ids"]) for item in items] for side in ("chosen", "rejected")}
    keys = []
    for item in items:
        parts = [item["prompt_ids"], item["chosen_ids"], item["rejected_ids"]]
        content = np.array([len(part) for part in parts], "<i8").tobytes()
        content += b"".join(part.numpy().astype("<i4").tobytes() for part in parts)
        masks = [item["chosen_mask"], item["rejected_mask"]]
        keys.append(hashlib.sha256(content + b"".join(bytes(mask.tolist()) for mask in masks)).digest())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"pair": keys, **columns}, schema=schema), sink)
    content = sink.getvalue().to_pybytes()
    (scorer.cache.folder / f"part-{hashlib.sha256(content).hexdigest()[:32]}.parquet").write_bytes(content)
    again, _ = start(_rows(*range(4)))
    assert again.metrics == {"reference/cache_hits": 4, "reference/cache_misses": 0}


def test_numbers_of_another_model_are_refused(start):
    first, _ = start(_rows(*range(8)))
    first.fill(_Workers())
    scorer, _ = start(_rows(*range(8)))
    with pytest.raises(ValueError) as error:
        scorer.fill(_Workers(shift=0.01))
    assert "reference cache" in str(error.value) and "Delete the folder" in str(error.value)
    assert "by 0.01 nats" in str(error.value) and "chosen answer of training pair" in str(error.value)
    scorer.fill(_Workers(shift=1e-4))  # round-off


def test_an_answer_of_another_length_is_refused(start):
    first, _ = start(_rows(*range(4)))
    first.fill(_Workers())
    scorer, _ = start(_rows(*range(4)))
    for key, log_probs in list(scorer.cache._rows.items()):
        scorer.cache._rows[key] = log_probs[:-1]
    with pytest.raises(ValueError, match="by inf nats"):
        scorer.fill(_Workers())


def test_a_long_pass_saves_as_it_goes(start, monkeypatch):
    class _Dies(_Workers):
        def reference_log_probs(self, batch):
            if len(self.batches) == 3:
                raise RuntimeError("out of memory")
            return super().reference_log_probs(batch)

    monkeypatch.setattr(reference_pass, "_PAIRS_PER_PART", 8)
    scorer, _ = start(_rows(*range(20)))
    with pytest.raises(RuntimeError):
        scorer.fill(_Dies())
    again, _ = start(_rows(*range(20)))
    assert again.metrics == {"reference/cache_hits": 8, "reference/cache_misses": 12}


def test_what_a_checkpoint_remembers(start):
    scorer, trainer = start(_rows(0, 1, 2, 3))
    weights = weights_digest(trainer.config.actor_rollout_ref.model.path)
    assert scorer.note() == {"weights": weights, "reference": "cached", "sync_steps": 0}
    live, _ = start(_rows(0, 1, 2, 3), reference="live", reference_sync_steps=5)
    assert live.note() == {"weights": weights, "reference": "live", "sync_steps": 5}
    assert not hasattr(live, "cache")


def test_the_reference_may_be_another_model_and_a_loss_may_need_none(start, tmp_path):
    other = _model_folder(tmp_path / "other", value=2.0)
    scorer, _ = start(_rows(0, 1, 2, 3), reference_path=str(tmp_path / "other"))
    assert scorer.identity.weights == other
    free, _ = start(_rows(0, 1, 2, 3), loss_type="simpo")
    assert free.identity is None and free.note()["weights"] is None and free.metrics == {}


def test_the_identity_names_the_way_of_computing(start):
    scorer, trainer = start(_rows(0, 1, 2, 3))
    assert SimpleNamespace(**dataclasses.asdict(scorer.identity)) == SimpleNamespace(
        weights=weights_digest(trainer.config.actor_rollout_ref.model.path),
        model_dtype="fp32",
        compute_dtype="fp32",
        backend="rows",
        attention="flash_attention_2",
        layers="plain",
        packed=False,
        sequence_parallel=1,
        model_overrides="{}",
        device="cpu",
    )
    trainer.config.actor_rollout_ref.model.override_config = {"attn_implementation": "sdpa", "rope_theta": 5e5}
    trainer.config.actor_rollout_ref.actor.fsdp_config.mixed_precision = None
    trainer.config.actor_rollout_ref.actor.fsdp_config.use_torch_compile = True
    trainer.config.actor_rollout_ref.actor.ulysses_sequence_parallel_size = 2
    trainer.config.actor_rollout_ref.model.use_remove_padding = True
    other = ReferenceScorer(trainer).identity
    assert (other.attention, other.compute_dtype, other.packed, other.layers) == ("sdpa", "bf16", True, "compiler")
    assert other.sequence_parallel == 2
    assert other.model_overrides == '{"rope_theta": 500000.0}'


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ReferenceIdentity)])
def test_whatever_else_of_the_identity_is_another_its_folder_is_another(name):
    value = getattr(IDENTITY, name)
    other = dataclasses.replace(IDENTITY, **{name: not value if isinstance(value, bool) else value * 2})
    assert other != IDENTITY and other.digest() != IDENTITY.digest()
