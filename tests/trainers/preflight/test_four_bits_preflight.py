"""Adapters on a base in four bits: what is refused before Ray, and what a run is told that the base takes."""

import copy
import json
import sys

import pytest
from omegaconf import OmegaConf, open_dict
from prepared import MATHS, composed, prepare_offline

from verl_aiops.kernels import four_bits
from verl_aiops.trainers.config import ConfigError
from verl_aiops.trainers.dpo.adapter import prepare_adapter
from verl_aiops.trainers.preflight import entry, offline, online, rl, rows
from verl_aiops.trainers.preflight import four_bits as preflight
from verl_aiops.trainers.preflight.basics import check_adapter
from verl_aiops.trainers.preflight.checks import Run
from verl_aiops.trainers.preflight.defaults import DEFAULTS, apply_defaults

pytestmark = pytest.mark.usefixtures("platform")

ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"


@pytest.fixture(scope="module")
def verls():
    """verl's own configuration. Shared: read, never write."""
    return composed()


@pytest.fixture
def checked(verls, tiny_model_dir, monkeypatch):
    """checked(**{key: value}) -> (faults of the one check, lines), with bitsandbytes wherever it is asked for."""
    monkeypatch.setattr(preflight, "why_not", lambda: None)

    def run(**settings):
        config = copy.deepcopy(verls)
        least = {
            preflight.BASE_FORMAT: "nf4",
            f"{MODEL}.lora_rank": 8,
            f"{MODEL}.path": str(tiny_model_dir),
            "trainer.n_gpus_per_node": 1,
            # as offline runs' defaults have it
            f"{ACTOR}.fsdp_config.use_torch_compile": False,
        }
        with open_dict(config):
            for key, value in {**least, **settings}.items():
                OmegaConf.update(config, key, value, force_add=True)
        known = Run("dpo", set(settings))
        return preflight.check_four_bits(config, known), known.lines

    return run


def test_what_the_base_takes_is_said(checked, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    faults, (line,) = checked()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    small = sum(layer.weight.numel() for layer in four_bits.layers_for_four_bits(model).values())
    every = sum(p.numel() for p in model.parameters())
    assert not faults and 0 < small < every
    assert f"{small:,} of {every:,} weights of the base in four bits" in line
    # QLoRA, section 3: 0.127 bits a weight for the scales
    assert abs(8 * four_bits.BYTES - 4.127) < 5e-4
    assert checked(**{preflight.BASE_FORMAT: None, f"{MODEL}.lora_rank": 0}) == ([], [])


def test_an_adapter_to_start_from_sets_the_rank_that_the_base_is_asked_for(checked, verls, tmp_path):
    """The adapter is looked at first; a base in four bits without either is refused."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    config = copy.deepcopy(verls)
    with open_dict(config):
        config.actor_rollout_ref.model.lora_adapter_path = str(folder)
    prepare_adapter(config, set())
    faults, (line,) = checked(**{f"{MODEL}.lora_rank": config.actor_rollout_ref.model.lora_rank})
    assert not faults and "weights of the base in four bits" in line
    order = [check.look for check in offline.checks(config)]
    assert order.index(check_adapter) < order.index(preflight.check_four_bits)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({preflight.BASE_FORMAT: "int4"}, "expected one of nf4"),
        ({f"{MODEL}.lora_rank": 0}, f"Set {MODEL}.lora_rank"),
        ({"trainer.n_gpus_per_node": 2}, "with 2 workers: layers of four bits are not shared out"),
        ({f"{ACTOR}.fsdp_config.param_offload": True}, "param_offload=True: the base takes little enough"),
        ({f"{ACTOR}.fsdp_config.qat.enable": True}, "qat.enable=True"),
        ({f"{MODEL}.enable_activation_offload": True}, "enable_activation_offload=True"),
        ({f"{ACTOR}.fsdp_config.mixed_precision": {"param_dtype": "fp16"}}, "set bf16 or fp32"),
        ({f"{ACTOR}.checkpoint.save_contents": ["model", "hf_model"]}, "naming hf_model"),
        ({f"{ACTOR}.fsdp_config.use_torch_compile": True}, "products of four bits are not compiled"),
    ],
)
def test_what_layers_of_four_bits_do_not_stand_is_refused(checked, settings, said):
    (fault,) = checked(**settings)[0]
    assert said in fault and fault.startswith(f"{preflight.BASE_FORMAT}=")


def test_a_mixture_whose_experts_would_stay_whole_is_refused(checked, tmp_path):
    from transformers import MixtralConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=64, architectures=["MixtralForCausalLM"]).save_pretrained(
        tmp_path
    )
    (fault,) = checked(**{f"{MODEL}.path": str(tmp_path)})[0]
    assert "the rest would stay as they are (mixtral)" in fault


def test_without_bitsandbytes_the_run_is_refused_with_the_command_that_installs_it(
    verls, tiny_model_dir, write_rows, monkeypatch
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    rows_ = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(8)]
    settings = {
        "algorithm.adv_estimator": "dpo",
        "data.train_files": write_rows(rows_, "train.jsonl"),
        "data.train_batch_size": 4,
        f"{MODEL}.path": str(tiny_model_dir),
        f"{MODEL}.lora_rank": 8,
        preflight.BASE_FORMAT: "nf4",
    }
    config = copy.deepcopy(verls)
    with open_dict(config):
        for key, value in settings.items():
            OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ConfigError, match=r'bitsandbytes is not installed here: pip install "verl-aiops\[qlora\]"'):
        prepare_offline(config, set(settings))


def test_a_bitsandbytes_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(four_bits.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(four_bits.metadata, "version", lambda name: "0.49.2")
    assert four_bits.why_not().startswith("bitsandbytes 0.49.2 is older than 0.50: pip install")


def test_other_trainers_refuse_what_they_would_not_look_at(verls, tmp_path):
    """verl's engines load a whole base, and would say nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([MATHS]), tmp_path / "maths.parquet")
    config = copy.deepcopy(verls)
    with open_dict(config):
        OmegaConf.update(config, preflight.BASE_FORMAT, "nf4", force_add=True)
        config.data.train_files = config.data.val_files = str(tmp_path / "maths.parquet")
    (fault,) = preflight.refuse_elsewhere(config)
    assert f"Remove {preflight.BASE_FORMAT}." in fault
    for of in (online, rl, rows):
        assert preflight.refuse_elsewhere in [check.look for check in of.checks(config)]
    # a run that is verl's alone
    wrapped = entry.with_preflight(lambda **_: pytest.fail("verl was not to be reached"))
    with pytest.raises(SystemExit, match="adapters on a base in four bits are trained by"):
        wrapped(config, False, False)
    assert preflight.refuse_elsewhere(verls) == []


def test_on_gpus_what_stays_whole_is_bfloat16(verls, monkeypatch):
    from verl.utils import device

    config = copy.deepcopy(verls)
    key = f"{ACTOR}.fsdp_config.model_dtype"
    monkeypatch.setattr(device, "get_device_name", lambda: "cuda")
    (default,) = [default for default in DEFAULTS if default.key == key]
    assert apply_defaults(config, set(), (default,)) == []
    with open_dict(config):
        OmegaConf.update(config, preflight.BASE_FORMAT, "nf4", force_add=True)
    (line,) = apply_defaults(config, set(), (default,))
    assert line.startswith(f"{key}=bf16  (")


def test_the_reference_of_a_base_in_four_bits_is_another(verls):
    from verl_aiops.trainers.reference.scorer import _overrides

    model = copy.deepcopy(verls.actor_rollout_ref.model)
    before = _overrides(model, None)
    with open_dict(model):
        model.lora.base_format = "nf4"
    assert json.loads(_overrides(model, None)) == {**json.loads(before), "lora.base_format": "nf4"}
    # a model of its own is scored whole
    assert _overrides(model, "another") == before
