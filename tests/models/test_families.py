"""docs/models.md says of each family what a tiny random model of it shows: layers, rows, shared prompts, generation."""

import copy
import re
from pathlib import Path

import pytest
import torch
from company_models import RECURRENT, ROTARY, model_of
from fused_runs import rotary_embeddings_as_they_were, run, spread_weights  # noqa: F401  (a fixture)
from logprob_pairs import assert_same, hard_pairs
from tiny_lms import VOCABULARY, tiny_lm

from verl_aiops.kernels.fused_layers import fuse_layers
from verl_aiops.models.company import company_of
from verl_aiops.rollout.hf.engine import Engine, Request, Sampling
from verl_aiops.trainers.dpo.pairs import pair_batch
from verl_aiops.trainers.logprobs import LOGPROB_BACKENDS
from verl_aiops.trainers.logprobs.support import _WINDOW_IN_MASK, SHARED_PROMPT_MODELS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
# decoders of attention alone that cannot share prompts
OTHERS = ("diffllama", "doge", "falcon", "gpt2", "nemotron", "stablelm")
FAMILIES = (*SHARED_PROMPT_MODELS, *OTHERS, *RECURRENT)
QUICK = ("gemma3_text", "deepseek_v3", "gemma2", "gpt_oss", "lfm2")
COLUMNS = ("rows", "packed", "shared", "layers", "generation")


def made(kind):
    return model_of(kind) if kind in RECURRENT else tiny_lm(kind).eval()


def table():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return {kind: dict(zip(COLUMNS, cells.split(" | "), strict=True)) for kind, cells in rows}


def rows_and_packing(kind):
    model, pairs = made(kind), hard_pairs()
    exact = []
    with torch.no_grad():
        for p in pairs:
            for answer in (p["chosen_ids"], p["rejected_ids"]):
                logits = made(kind)(input_ids=torch.cat([p["prompt_ids"], answer])[None]).logits[0]
                logits = logits[-len(answer) - 1 : -1].log_softmax(-1)
                exact.append(logits.gather(1, answer[:, None]).squeeze(1))
        for packed in (False, True):
            batch = pair_batch(pairs, mini_pairs=len(pairs))
            got = LOGPROB_BACKENDS["rows"](model, batch, packed=packed, device="cpu").values()
            torch.testing.assert_close(got, torch.cat(exact), rtol=0, atol=1e-4)
    company = company_of(model)
    return ("together" if company.together else "one at a time"), ("yes" if company.packed else "padded instead")


def sharing(kind):
    if kind not in SHARED_PROMPT_MODELS:
        return "no"
    assert_same(tiny_lm(kind))
    window = {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}
    if kind not in _WINDOW_IN_MASK:
        assert_same(tiny_lm(kind, **window))
    return "yes"


def layers(kind):
    model = spread_weights(made(kind))
    fused = copy.deepcopy(model)
    expected, gradients = run(model)
    done = fuse_layers(fused)
    logits, fused_gradients = run(fused)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)
    assert fused_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (fused_gradients[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-7, name
    rotary = any(name.endswith("apply_rotary_pos_emb") for name in done)
    norms = any(not name.endswith("apply_rotary_pos_emb") for name in done)
    return ", ".join(["norms"] * norms + ["rotary"] * rotary) or "the model's own"


def generation(kind):
    generator = torch.Generator().manual_seed(3)
    prompts = [tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist()) for n in (5, 17, 9, 40)]
    requests = [Request(prompt, Sampling(6, seed=at)) for at, prompt in enumerate([*prompts, prompts[1]])]
    model = made(kind)
    for request, answer in zip(requests, Engine(model, [2]).generate(requests)):
        (single,) = Engine(made(kind), [2]).generate([request])
        assert answer.token_ids == single.token_ids
        assert answer.logps == pytest.approx(single.logps, abs=1e-4)
    company = company_of(model)
    return "together" if company.together else "prompt by prompt" if company.repeated else "one at a time"


def shown(kind):
    rows, packed = rows_and_packing(kind)
    cells = (rows, packed, sharing(kind), layers(kind), generation(kind))
    return dict(zip(COLUMNS, cells, strict=True))


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in FAMILIES], ids=str
)
def test_the_page_says_what_a_model_of_the_family_shows(kind):
    assert table()[kind] == shown(kind)


def test_the_page_has_every_family():
    assert set(table()) == set(FAMILIES)
    page = PAGE.read_text(encoding="utf-8")
    assert all(name in page for name in ROTARY)


if __name__ == "__main__":  # the table's lines
    for family in sorted(FAMILIES):
        print(f"| `{family}` | " + " | ".join(shown(family).values()) + " |", flush=True)
