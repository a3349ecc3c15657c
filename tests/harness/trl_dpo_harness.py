"""For the tests of `verl-aiops trl-dpo`: pairs of one and of two rounds, and a step of verl's worker on them."""

import numpy as np
import torch

from verl_aiops.data import PreferenceDataset
from verl_aiops.trl.dpo_settings import DPOTraining

LIMITS = {"max_prompt_length": 512, "max_response_length": 256}


def row(at, rounds=1, **more):
    """The right answer names the log's word; of two rounds the user's turn between them is not to be learnt."""
    words = ["disk", "cache", "queue", "proxy"]
    right, wrong = words[at % 4], words[(at + 1) % 4]
    sides = {}
    for side, word in (("chosen", right), ("rejected", wrong)):
        answer = [{"role": "assistant", "content": f'{{"service": "{word}-{at}"}}'}]
        if rounds == 2:
            first = {"role": "assistant", "content": f"The {word} of host {at} fails first" + " again" * (at % 3) + "."}
            answer = [first, {"role": "user", "content": "Now give the JSON object, please."}, *answer]
        sides[side] = answer
    prompt = [{"role": "user", "content": f"Logs of host {at}:" + f" {right} timeout {at}" * (1 + at % 5)}]
    return {"prompt": prompt, **sides, "id": f"pair {at}", **more}


def settings(data, model, **given):
    quick = {"batch_size": 8, "micro_batch": 2, "lr": 1e-3, "device": "cpu", **LIMITS}
    return DPOTraining(data=(str(data),), model=str(model), **(quick | given))


def pairs_of(file, tokenizer, **given):
    return PreferenceDataset(str(file), tokenizer, progress=False, **(LIMITS | given))


def _batch(file, model_dir, micro_pairs, reference=None):
    from transformers import AutoTokenizer
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.dpo.pairs import pair_batch

    pairs = pairs_of(file, AutoTokenizer.from_pretrained(model_dir))
    batch = pair_batch(
        [pairs[at] for at in range(len(pairs))],
        mini_pairs=len(pairs),
        reference=reference,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=micro_pairs,
        max_token_len_per_gpu=0,
        use_remove_padding=False,
    )
    return tu.chunk_tensordict(batch, 1)[0]


def answer_log_probs(worker, file, model_dir):
    """[(of chosen, of rejected), ...] for each pair, as main_ppo's reference has them: float32, one a token."""
    from verl.utils import tensordict_utils as tu

    batch = _batch(file, model_dir, 2)
    tu.assign_non_tensor(batch, compute_loss=False, no_lora_adapter=worker.engine._is_lora)
    rows = [row.float().cpu().numpy() for row in worker.infer_batch(batch)["answer_log_probs"].unbind()]
    return list(zip(rows[0::2], rows[1::2]))


def losses_and_norms(worker, file, model_dir, reference, loss_settings):
    """(loss, gradient norm) of one step over all pairs of the file, for each of the settings, from the same weights."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.worker.objective import PreferenceObjective

    engine, results = worker.engine, []
    for wanted, micro_pairs in loss_settings:
        batch = _batch(file, model_dir, micro_pairs, reference)
        tu.assign_non_tensor(batch, global_token_num=None)
        with engine.train_mode():
            engine.optimizer_zero_grad()
            output = engine.forward_backward_batch(batch, PreferenceObjective(loss_settings=wanted), forward_only=False)
            gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.double()) for g in gradients]))
        results.append((float(np.sum(output["loss"])), float(norm)))
    return results


def trained_checkpoint(worker, file, model_dir, folder):
    """One step of our trainer's worker, and the checkpoint that main_ppo writes of it."""
    from verl.utils import tensordict_utils as tu

    from verl_aiops.trainers.worker.objective import PreferenceObjective

    reference = answer_log_probs(worker, file, model_dir)
    worker.set_loss_fn(PreferenceObjective(loss_settings={"beta": 0.1}))
    batch = _batch(file, model_dir, 2, reference)
    rows = 2 * len(reference)
    tu.assign_non_tensor(batch, mini_batch_size=rows, epochs=1, dataloader_kwargs={"shuffle": False})
    worker.train_mini_batch(batch)
    worker.save_checkpoint(local_path=folder)
