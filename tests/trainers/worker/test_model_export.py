"""The model that workers write is the one that verl's merger makes of their checkpoint."""

import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from worker_harness import run_workers


def _both_ways(worker, folder):
    """Weights that no folder holds, adapters' too; then the model at once, and a checkpoint that is merged."""
    from torch.distributed.tensor import DTensor

    engine = worker.engine
    with torch.no_grad():
        for number, parameter in enumerate(engine.module.parameters()):
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            local.add_(torch.randn(local.shape, generator=torch.Generator().manual_seed(number)) * 0.02)
    kept = engine.checkpoint_manager
    _write(engine.write_model, engine.save_checkpoint, folder)
    # as where the first worker is on another machine than the trainer, which has made the folder; nobody waits for it
    refused = pytest.raises(FileNotFoundError, match="a folder that all machines of the run share")
    with refused if torch.distributed.get_rank() == 0 else nullcontext():
        engine.write_model(f"{folder}/elsewhere")
    assert engine.checkpoint_manager is kept


def _write(write_model, save_checkpoint, folder):
    """Both ways, in files of 40 KB."""
    from verl_aiops.models import merger, weights
    from verl_aiops.models.folders import merge_checkpoint

    merger.MOST_OF_A_FILE = weights.MOST_OF_A_FILE = "40KB"
    first = torch.distributed.get_rank() == 0
    ours, actor = Path(folder, "ours"), Path(folder, "actor")
    if first:
        ours.mkdir()
    torch.distributed.barrier()
    write_model(str(ours))
    save_checkpoint(str(actor))
    if first:
        merge_checkpoint(str(actor), str(Path(folder, "merged")), trust_remote_code=False)
    torch.distributed.barrier()


def _by_fsdp1(model_dir, folder):
    """FSDP1 as verl builds it, on CPUs, for which its engine has none."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    from verl_aiops.trainers.worker.model_export import ModelExport

    world = torch.distributed.get_world_size()
    model = FullyShardedDataParallel(
        AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        device_id=torch.device("cpu"),
        device_mesh=init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",)),
    )
    contents = {"save_contents": ["model"], "load_contents": ["model"]}
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    manager = FSDPCheckpointManager(model, processing_class=tokenizer, checkpoint_config=contents)
    _write(ModelExport(manager).save_checkpoint, manager.save_checkpoint, folder)


def _sorted(value):
    """The names of an adapter's modules are a set to peft, whose order is by chance."""
    if isinstance(value, dict):
        return {key: _sorted(one) for key, one in value.items()}
    return sorted(value, key=str) if isinstance(value, list) else value


def _same(folder):
    """Whether both ways have given the same; names of the files of the model at once."""
    weights: dict[str, dict] = {"ours": {}, "merged": {}}
    texts: dict[str, dict] = {"ours": {}, "merged": {}}
    for way in weights:
        for path in sorted((folder / way).rglob("*")):
            name = str(path.relative_to(folder / way))
            if path.suffix == ".safetensors":
                place = "" if path.name.startswith("model") else name
                weights[way] |= {(place, key): value for key, value in load_file(path).items()}
            elif path.is_file() and not name.endswith(".index.json"):  # in which order the merger writes is by chance
                text = path.read_text(encoding="utf-8")
                texts[way][name] = _sorted(json.loads(text)) if name.endswith(".json") else text
    assert texts["ours"] == texts["merged"] and weights["ours"].keys() == weights["merged"].keys()
    for key, value in weights["merged"].items():
        assert value.dtype == weights["ours"][key].dtype and torch.equal(value, weights["ours"][key]), key
    names = {str(path.relative_to(folder / "ours")) for path in (folder / "ours").rglob("*")}
    # several files of the size that was asked for, and their index
    assert len([name for name in names if name.startswith("model-0")]) > 1 and "model.safetensors.index.json" in names
    assert sorted(entry.name for entry in os.scandir(folder)) == ["actor", "merged", "ours"]
    return names


def _by_two(worker, model_dir, folder):
    _both_ways(worker, f"{folder}/lora")
    _by_fsdp1(model_dir, f"{folder}/fsdp1")


@pytest.mark.slow
def test_the_model_of_one_worker_is_that_of_its_checkpoint(tiny_model_dir, tmp_path):
    run_workers(tiny_model_dir, 1, _both_ways, str(tmp_path))
    _same(tmp_path)


def test_the_model_of_two_workers_is_that_of_their_checkpoint(tiny_model_dir, tmp_path):
    """FSDP2 with adapters, and FSDP1."""
    for name in ("lora", "fsdp1"):
        (tmp_path / name).mkdir()
    run_workers(tiny_model_dir, 2, _by_two, str(tiny_model_dir), str(tmp_path), lora_rank=4)
    assert "lora_adapter/adapter_model.safetensors" in _same(tmp_path / "lora")
    assert "lora_adapter" not in _same(tmp_path / "fsdp1")
