"""verl's RewardModelManager with the rollout hf on a Ray of its own, in a process of its own; answers as JSON lines.

python tests/harness/reward_server_harness.py FOLDER_OF_REWARD_MODEL TEXTS.json
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def post(address, endpoint, text):
    import httpx

    # without the machine's proxies: the server is here
    with httpx.Client(trust_env=False, timeout=120) as client:
        answer = client.post(f"http://{address}/{endpoint}", json={"input": text, **_ASKED[endpoint]})
    answer.raise_for_status()
    return answer.json()["data"][0][_KEY[endpoint]][0]


_ASKED = {"classify": {"use_activation": False, "model": "m"}, "v1/embeddings": {"model": "m"}}
_KEY = {"classify": "probs", "v1/embeddings": "embedding"}


def configured(folder, **reward_model):
    """verl's own configuration with what a run on CPU is given; told nothing but the model and where it stands."""
    from prepared import composed

    from verl_aiops.rollout.hf.limits import check_reward_server
    from verl_aiops.trainers.preflight.defaults import apply_defaults
    from verl_aiops.trainers.preflight.defaults_rl import REWARD_MODEL_DEFAULTS

    given = {"enable": True, "model_path": folder, **reward_model}
    overrides = [f"reward.reward_model.{key}={value}" for key, value in given.items()]
    config = composed(*overrides)
    apply_defaults(config, set(), REWARD_MODEL_DEFAULTS)
    assert check_reward_server(config) == []
    return config.reward.reward_model


def all_scores(address, texts):
    with ThreadPoolExecutor(len(texts)) as threads:
        return {
            endpoint: list(threads.map(lambda text, endpoint=endpoint: post(address, endpoint, text), texts))
            for endpoint in _ASKED
        }


def colocated(folder, texts):
    """On the one logical GPU whose other shares a training worker and the policy's server have."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    from verl.experimental.reward_loop.reward_model import RewardModelManager
    from verl.single_controller.ray import RayResourcePool

    from verl_aiops.rollout.hf.replica import server_name

    @ray.remote
    class Trainer:
        def there(self):
            return True

    pool = RayResourcePool([1], use_gpu=True, max_colocate_count=3, name_prefix="global_pool")
    (group,) = pool.get_placement_groups(device_name="cpu")
    share = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=0)
    trainer = Trainer.options(name=server_name(0), num_gpus=1 / 3, num_cpus=1, scheduling_strategy=share).remote()
    assert ray.get(trainer.there.remote(), timeout=60)
    manager = RewardModelManager(configured(folder), pool)
    with ThreadPoolExecutor(1) as thread:
        early = thread.submit(post, manager.get_router_address(), "classify", texts[0])
        time.sleep(2)
        waited = not early.done()
        manager.wake_up()
        answers = {"waited": waited, "early": early.result(timeout=60)}
    answers |= all_scores(manager.get_router_address(), texts)
    manager.sleep()
    manager.wake_up()
    answers["again"] = post(manager.get_router_address(), "classify", texts[0])
    answers["memory_gib"] = memory_gib()
    end(manager, trainer)
    ray.util.remove_placement_group(group)
    return answers


def standalone(folder, texts):
    from verl.experimental.reward_loop.reward_model import RewardModelManager

    manager = RewardModelManager(configured(folder, enable_resource_pool=True))
    return all_scores(manager.get_router_address(), texts) | {"memory_gib": memory_gib()}


def end(manager, *others):
    import ray

    for replica in manager.rollout_replicas:
        for actor in (*replica.servers, *replica.workers, *others):
            ray.kill(actor)


def memory_gib():
    """Resident memory of this process and all that it started, without counting shared pages twice."""
    import psutil

    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**30


def main(folder, texts_file):
    os.environ["VERL_PLATFORM"] = "cpu"
    import ray

    with open(texts_file, encoding="utf-8") as file:
        texts = json.load(file)
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        log_to_driver=False,
    )
    try:
        for mode in (colocated, standalone):
            started = time.monotonic()
            answers = mode(folder, texts)
            print(json.dumps({"mode": mode.__name__, "seconds": time.monotonic() - started, **answers}), flush=True)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
