"""Answers of a model in a folder: the agent loop's tokens, samples that depend on nothing else, verl's checkpoints."""

import shutil
from dataclasses import replace

import pytest
import torch
from eval_harness import questions_of, verl_run
from scripted_loops import looped
from tiny import CHATML, make_tiny_model, make_tokenizer

from verl_aiops.cli import main as cli
from verl_aiops.evaluation.errors import EvaluationError
from verl_aiops.evaluation.run.backend import Job, SamplingOptions
from verl_aiops.evaluation.run.hf_backend import LocalBackend
from verl_aiops.incidents import PromptOptions, Simulator, build_rl, simulator_source
from verl_aiops.models.folders import ModelFolderError, find_model

GREEDY = SamplingOptions(round_tokens=(12, 9))


@pytest.fixture(autouse=True)
def one_thread():
    """A model this small is faster on one, and on a machine that does other things much faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def questions():
    return short_questions(5)


def short_questions(count, **options):
    """The tiny tokenizer makes many tokens of little text."""
    return questions_of(count, lang="en", budget=100, max_candidates=2, **options)


def local(folder, options=GREEDY, batch=4, scratch=None, dtype="float32"):
    return LocalBackend(find_model(str(folder)), options, batch, dtype, scratch or folder / "unused")


def answers(backend, questions, samples=1):
    made = {}
    jobs = [Job(q, s, 100 * at + s) for at, q in enumerate(questions) for s in range(samples)]
    backend.generate(jobs, lambda job, g: made.__setitem__((job.question.id, job.sample), g))
    assert len(made) == len(jobs)
    return made


# --- the same tokens as in training -----------------------------------------------------------------------------------


def loop_answers(folder, tokenizer, questions, budgets, response_length):
    """What the agent loop makes of the questions with the engine of the rollout hf, greedily."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from verl.workers.rollout.replica import TokenOutput

    from verl_aiops.rollout.hf.engine import Engine, Request, Sampling
    from verl_aiops.rollout.rounds.agent_loop import AiopsMturnAgentLoop
    from verl_aiops.rollout.rounds.stops import stop_ids

    engine = Engine(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), stop_ids(folder, tokenizer))
    asked = []

    class Client:
        async def generate(self, prompt_ids, sampling_params, **_):
            asked.append(list(prompt_ids))
            params = {"temperature": 0.0, **sampling_params}
            (sampled,) = engine.generate([Request(tuple(prompt_ids), Sampling.from_params(params, 1000))])
            return TokenOutput(token_ids=sampled.token_ids, log_probs=sampled.logps, extra_fields={})

    custom = {"answer_tokens": 10} if budgets is None else {"round_tokens": list(budgets)}
    rollout = {"name": "hf", "seed": 1, "prompt_length": 2000, "response_length": response_length}
    rollout["custom"] = {"aiops_mturn": custom}
    rows = [{"raw_prompt": list(q.messages), "extra_info": {"rounds": list(q.rounds)}} for q in questions]
    kind = AutoConfig.from_pretrained(folder).model_type
    made = looped(AiopsMturnAgentLoop, Client(), tokenizer, folder, rollout, *rows, sampling={}, hf_model_type=kind)
    return made, asked


@pytest.mark.parametrize("budgets", [(12, 9), None])
@pytest.mark.parametrize("style", ["two_round", "direct"])
def test_greedy_answers_are_the_agent_loops(tiny_model_dir, tokenizer, budgets, style, monkeypatch):
    from verl_aiops.rollout.hf.engine import Engine

    asked_here = []
    generate = Engine.generate
    monkeypatch.setattr(
        Engine, "generate", lambda self, requests, *a: asked_here.extend(requests) or generate(self, requests, *a)
    )
    some = short_questions(4, style=style)
    between = max(sum(local(tiny_model_dir)._between(q)) for q in some)
    options = replace(GREEDY, round_tokens=budgets, max_response_length=between + 24, answer_tokens=10)
    made = answers(local(tiny_model_dir, options), some)
    here = {tuple(request.prompt_ids) for request in asked_here}
    monkeypatch.setattr(Engine, "generate", generate)
    outputs, asked = loop_answers(tiny_model_dir, tokenizer, some, budgets, between + 24)
    for question, output in zip(some, outputs):
        generation = made[question.id, 0]
        assert generation.turns == output.extra_fields["turns"]
        assert generation.cut == [bool(cut) for cut in output.extra_fields["round_cut"]]
        assert sum(generation.tokens) == sum(output.response_mask)
        assert len(generation.turns) == len(question.rounds) + 1
    assert here == {tuple(prompt) for prompt in asked}


def test_answers_do_not_depend_on_the_batch(tiny_model_dir, questions):
    options = replace(GREEDY, temperature=1.0, top_p=0.9)
    one, all_together = (answers(local(tiny_model_dir, options, batch), questions, 3) for batch in (1, 15))
    assert one == all_together
    some = answers(local(tiny_model_dir, options, 2), questions[:1], 3)
    assert some == {key: made for key, made in one.items() if key[0] == questions[0].id}
    assert len({made.turns[0] for made in some.values()}) == 3


def test_budgets_are_kept(tiny_model_dir, questions):
    for generation in answers(local(tiny_model_dir), questions).values():
        assert generation.tokens[0] <= 12 and generation.tokens[1] <= 9
        assert generation.cut == [True, True] or min(generation.tokens) < 12


def test_questions_with_different_numbers_of_rounds_share_a_batch(tiny_model_dir, questions):
    mixed = [replace(q, rounds=q.rounds * at) for at, q in enumerate(questions[:3])]
    options = SamplingOptions(round_tokens=(5,))
    made = answers(local(tiny_model_dir, options), mixed)
    assert [len(made[q.id, 0].turns) for q in mixed] == [1, 2, 3]
    alone = answers(local(tiny_model_dir, options, batch=1), mixed)
    assert alone == made


# --- what is refused before the weights are read ----------------------------------------------------------------------


def test_prompts_without_room_are_refused_with_the_longest(tiny_model_dir, questions, monkeypatch):
    backend = local(tiny_model_dir)
    backend.check(questions)
    backend.config.max_position_embeddings = 100
    with pytest.raises(EvaluationError, match=r"has 100 positions, but \d prompts .* smaller --max-chars"):
        backend.check(questions)


def test_budgets_that_do_not_fit_are_refused_by_the_option(tiny_model_dir, questions):
    with pytest.raises(EvaluationError, match="--max-response-length"):
        local(tiny_model_dir, SamplingOptions(max_response_length=70)).check(questions)


def folder_without_template(tmp_path):
    make_tiny_model(tmp_path / "m", tokenizer=make_tokenizer(chat_template=None))
    return tmp_path / "m"


def test_models_that_cannot_be_used(tmp_path, questions):
    with pytest.raises(EvaluationError, match="no chat template"):
        local(folder_without_template(tmp_path))
    refusing = CHATML + "{{ raise_exception('no such thing') }}"
    make_tiny_model(tmp_path / "r", tokenizer=make_tokenizer(chat_template=refusing))
    with pytest.raises(EvaluationError, match="refuses the prompt"):
        local(tmp_path / "r").check(questions)
    (tmp_path / "r" / "tokenizer.json").write_text("{")
    with pytest.raises(EvaluationError, match="tokenizer cannot be loaded"):
        local(tmp_path / "r")


def test_weights_that_cannot_be_used(tmp_path, questions):
    folder = make_tiny_model(tmp_path / "m")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(ModelFolderError, match=r"model.safetensors \(1,000 bytes\) is no whole safetensors file"):
        answers(local(folder), questions)
    weights.write_bytes(whole[:-4000] + b"\xff" * 4000)
    with pytest.raises(EvaluationError, match="not finite"):
        answers(local(folder), questions)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path, tiny_model_dir):
    """What verl leaves of one process: a run with one checkpoint, bfloat16 so that merging changes nothing."""
    model = make_tiny_model(tmp_path / "plain", dtype="bfloat16", seed=5)
    return verl_run(tmp_path / "run", model)


def test_a_checkpoint_of_verl_answers_as_the_model_that_it_is(run_folder, questions, tmp_path):
    plain = answers(local(tmp_path / "plain"), questions)
    scratch = tmp_path / "scratch"
    scratch.mkdir()  # left by a killed run
    for folder in (run_folder / "global_step_4", run_folder / "global_step_4" / "actor"):
        backend = local(folder, scratch=scratch)
        backend.check(questions)
        assert answers(backend, questions) == plain
        assert answers(backend, questions[:1]) == {k: v for k, v in plain.items() if k[0] == questions[0].id}
        assert not scratch.exists()


def test_a_checkpoint_from_the_command(run_folder, tmp_path, capsys):
    source = simulator_source(Simulator(seed=1), 3)
    build_rl(source, tmp_path / "rl.parquet", val_share=0, prompts=PromptOptions(budget=200))
    arguments = ["eval", "--model", str(run_folder / "global_step_4"), "--data", str(tmp_path / "rl.parquet")]
    arguments += ["--out", str(tmp_path / "out"), "--round-tokens", "[8,8]"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("3 incidents of 3 faults, 3 answers") and "device mesh" not in shown.out
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"generations.jsonl", "settings.json", "summary.json", "table.txt", ".lock"}
    # another training step under the same name is another model
    shard = run_folder / "global_step_4" / "actor" / "model_world_size_1_rank_0.pt"
    state = torch.load(shard, weights_only=True)
    state["model.norm.weight"] += 1
    torch.save(state, shard)
    assert cli.main(arguments) == 2
    assert "model_files was" in capsys.readouterr().err


def test_another_chat_template_is_another_model(tmp_path):
    folder = make_tiny_model(tmp_path / "m")
    before = find_model(str(folder)).fingerprint()
    assert find_model(str(folder)).fingerprint() == before
    (folder / "chat_template.jinja").write_text(CHATML + "\n")
    assert find_model(str(folder)).fingerprint() != before


def test_folders_that_hold_no_usable_model(run_folder, tmp_path, tiny_model_dir):
    def refused(folder, message):
        with pytest.raises(ModelFolderError, match=message):
            find_model(str(folder))

    refused(run_folder, "the folder of a run. Name one of its checkpoints: global_step_4")
    actor = run_folder / "global_step_4" / "actor"
    (actor / "fsdp_config.json").rename(actor / "moved")
    refused(actor, "no fsdp_config.json")
    shutil.copy(actor / "model_world_size_1_rank_0.pt", actor / "model_world_size_2_rank_0.pt")
    refused(actor, "incomplete: shards of 2 processes, but 1 of their files")
    (actor / "model_world_size_1_rank_0.pt").unlink()
    refused(run_folder / "global_step_4", "incomplete")

    (tmp_path / "megatron" / "actor" / "dist_ckpt").mkdir(parents=True)
    refused(tmp_path / "megatron", "a checkpoint of Megatron")
    other = tmp_path / "other"
    other.mkdir()
    refused(other, "no config.json and no checkpoint")
    (other / "adapter_config.json").write_text("{}")
    refused(other, "an adapter alone")
    (other / "adapter_config.json").unlink()
    (other / "config.json").write_text("[" * 3000)
    refused(other, "no weights")
    (other / "model.safetensors").write_bytes(b"")
    refused(other, "config.json cannot be read")
    (other / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    refused(other, "LlamaForSequenceClassification, which writes no text")
    assert find_model(str(tiny_model_dir)).shards is None
