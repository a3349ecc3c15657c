"""Files of weights that were cut: told by their headers, before a model is made of them."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from verl_aiops.inputs.weights_file import cut_short
from verl_aiops.models.folders import ModelFolderError, find_model


@pytest.fixture
def whole(tmp_path):
    tensors = {"a": np.arange(100, dtype=np.float32), "b": np.ones((2, 3), np.int8), "none": np.zeros(0)}
    save_file(tensors, tmp_path / "model-2.safetensors", metadata={"format": "pt"})
    save_file({}, tmp_path / "model-1.safetensors")
    return tmp_path / "model-2.safetensors"


def test_whole_files_and_no_files_are_fine(whole, tmp_path):
    assert cut_short(tmp_path) is None and cut_short(tmp_path / "none") is None


@pytest.mark.parametrize("left", [0, 5, 8, 40, -1, -100])
def test_a_file_that_was_cut_is_named_with_its_size(whole, tmp_path, left):
    data = whole.read_bytes()[:left]
    whole.write_bytes(data)
    told = cut_short(tmp_path)
    assert told.startswith("model-2.safetensors ") and f"{len(data):,} bytes" in told and "download it again" in told


@pytest.mark.parametrize("text", [b"<html>", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{]"])
def test_what_is_no_such_file_is_said(whole, tmp_path, text):
    whole.write_bytes(text)
    assert "model-2.safetensors" in cut_short(tmp_path)


def test_bytes_behind_the_last_tensor_are_a_fault_too(whole, tmp_path):
    whole.write_bytes(whole.read_bytes() + b"x")
    assert "where its header says" in cut_short(tmp_path)


def test_a_model_of_which_a_part_is_missing_is_refused(tiny_model_dir, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelFolderError, match=r"--model .*model: model.safetensors .*5,000 bytes"):
        find_model(str(folder))
