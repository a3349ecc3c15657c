"""The three passes of a GRPO step in the training workers, verl's own engine against ours on the same rows.

    python benchmarks/bench_rl.py --model models/SmolLM2-135M-Instruct --prompts 4 --n 4 --prompt 300 --answer 80 \\
        --stock rows=4 rows=16 --rounds 2 --repeats 4 --out benchmarks/results/rl_cpu
    python benchmarks/bench_rl.py --device cuda --size 1.5b --stock rows=8 rows=32 rows=32,fused=triton --out ...
    python benchmarks/bench_rl.py --device cuda --size 135m --vary n=2,4,8,16 --vary prompt=256,1024,4096 --out ...

A step scores its answers with the policy (old log-probs, with entropies), scores them with the reference, and updates
the policy once, as `main_ppo` with `use_kl_loss=True` does: `prompts` prompts with `n` answers each, of random tokens,
answers between half and one and a half times `--answer` long. `--stock` and `--ours` are settings to try (`rows=8`,
`tokens=16384`, with `,checkpointing`, `,packed` for `use_remove_padding`, `,fused=torch` or `,fused=triton` for verl's
`use_fused_kernels`): each is tried for one step on `--trial-prompts` prompts, and the fastest that fits is measured.
`ours, as trained` leaves out the old log-probs, which our trainer does not compute where the one update on its answers
has the same numbers. The runs take turns, a process each, `--rounds` times; seconds are means of `--repeats` steps
after the first. `--also rows=8` measures another setting of verl's
beside its fastest, `--also-ours` one of ours.

Writes OUT.json after every run, and goes on from there when called again; then the plots, OUT.png and, with `--vary`,
OUT_law.png.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

from bench_dpo import machine
from dpo_worker import SIZES, make_model
from rl_plots import plot_law, plot_parts
from rl_worker import PARTS, jobs_in_one_process, parse_setting

# name of a run: (engine, passes)
RUNS = {"verl": ("verl", PARTS), "ours": ("ours", PARTS), "ours, as trained": ("ours", PARTS[1:])}


def total(measured: dict) -> float:
    """Seconds of a step; infinite where there is none."""
    if not measured or "error" in measured:
        return math.inf
    return sum(statistics.mean(values) for values in measured["seconds"].values())


def flops(point: dict, shape: dict) -> dict[str, float]:
    """FLOPs that a step needs: a forward pass for each scoring, and one with its backward pass, twice as dear. verl's
    engine has logits at every token of every row; ours at the answers', and each prompt once. Attention is causal."""
    rows, prompt, answer = point["prompts"] * point["n"], point["prompt"], point["answer"]
    once, whole = point["prompts"] * prompt, prompt + answer
    branches = rows * (answer * prompt + answer**2 / 2)

    def forward(tokens, labels, pairs):
        return 2 * (shape["body"] * tokens + shape["head"] * labels) + 4 * shape["layers"] * shape["width"] * pairs

    verl = forward(rows * whole, rows * whole, rows * whole**2 / 2)
    ours = forward(once + rows * answer, rows * answer, once * prompt / 2 + branches)
    return {"verl": 5 * verl, "ours": 5 * ours, "ours, as trained": 4 * ours}


class Record:
    """What was measured, on disk after each run."""

    def __init__(self, path: Path, about: dict):
        self.path, self.data = path, {**about, "trials": [], "runs": []}
        if path.exists():
            before = json.loads(path.read_text())
            for key in ("machine", "versions", "model"):
                if before[key] != about[key]:
                    raise SystemExit(f"{path} is of {key} {before[key]}, this of {about[key]}: take another --out")
            self.data |= {key: before[key] for key in ("trials", "runs")}

    def find(self, kind: str, key: dict) -> dict | None:
        return next((e["measured"] for e in self.data[kind] if all(e[name] == key[name] for name in key)), None)

    def has(self, kind: str, key: dict) -> bool:
        return any(all(entry[name] == key[name] for name in key) for entry in self.data[kind])

    def add(self, kind: str, key: dict, measured: dict | None) -> None:
        self.data[kind].append({**key, "measured": measured})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")


def said(measured: dict | None) -> str:
    if measured is None:
        return "does not fit into memory"
    if "error" in measured:
        return "fails: " + measured["error"][:200]
    parts = {part: statistics.mean(values) for part, values in measured["seconds"].items()}
    peak = f", peak {measured['peak_gib']:.1f} GiB" if measured["peak_gib"] else ""
    seen = f", {measured['tokens_ratio']:.2f} of the tokens seen" if measured["tokens_ratio"] < 1 else ""
    text = ", ".join(f"{part} {value:.3f}" for part, value in parts.items())
    return f"{text}, together {sum(parts.values()):.3f} s{peak}{seen}"


class Bench:
    def __init__(self, model: str, arguments, record: Record):
        self.model, self.arguments, self.record = model, arguments, record

    def run(self, kind: str, engine: str, setting: str, jobs: list[tuple[dict, dict]]) -> None:
        """Measure those jobs (key in the record, job) that it has not."""
        build, limits = parse_setting(setting)
        jobs = [(key, {**job, "limits": limits}) for key, job in jobs if not self.record.has(kind, key)]
        found = jobs_in_one_process(self.model, self.arguments.device, engine, build, [job for _, job in jobs])
        for (key, _), measured in zip(jobs, found):
            if measured and "error" in measured:
                # its traceback names folders of this machine
                print(measured["error"], file=sys.stderr)
                measured = {"error": measured["error"].strip().splitlines()[-1]}
            self.record.add(kind, key, measured)
            name = "" if kind == "runs" else "tried, "
            print(f"{name}{key['point_name']}, {key['run']}, {setting}: {said(measured)}", flush=True)

    def order(self, engine: str, settings: list[str], base: dict) -> list[str]:
        """Settings from the fastest in a trial on; those that fail or do not fit are left out."""
        if len(settings) == 1:
            return settings
        prompts = min(self.arguments.trial_prompts, base["prompts"])
        point = {**base, "prompts": prompts}
        keys = {}
        for text in sorted(settings, key=lambda text: sorted(map(str, parse_setting(text)[0].items()))):
            key = {"point_name": "trial", "run": engine, "setting": text, "point": point}
            keys[text] = key
            job = {"point": point, "parts": PARTS, "repeats": 1, "warm_prompts": 1}
            self.run("trials", engine, text, [(key, job)])
        seconds = {text: total(self.record.find("trials", key)) for text, key in keys.items()}
        order = sorted((text for text in settings if seconds[text] < math.inf), key=seconds.get)
        if not order:
            raise SystemExit(f"{engine}: none of {', '.join(settings)} works")
        return order

    def measure(self, run: str, setting: str, points: list[tuple[str, dict]], turn: int, repeats: int) -> None:
        engine, parts = RUNS[run.partition(" at ")[0]]
        jobs = []
        for name, point in points:
            key = {"point_name": name, "run": run, "setting": setting, "turn": turn, "point": point}
            warm = min(self.arguments.warm_prompts or point["prompts"], point["prompts"])
            jobs.append((key, {"point": point, "parts": parts, "repeats": repeats, "warm_prompts": warm}))
        self.run("runs", engine, setting, jobs)

    def compare(self, points: list[tuple[str, dict]]) -> None:
        """All runs at all points, in turns; a setting that does not fit a point gives way to the next fastest."""
        asked = self.arguments
        base = points[0][1]
        orders = {"verl": self.order("verl", asked.stock, base), "ours": self.order("ours", asked.ours, base)}
        repeats = {"verl": asked.stock_repeats or asked.repeats, "ours": asked.repeats}
        for turn in range(asked.rounds):
            for run, (engine, _) in RUNS.items():
                missing = points
                for setting in orders[engine]:
                    self.measure(run, setting, missing, turn, repeats[engine])
                    missing = [(name, p) for name, p in missing if not self.fits(run, setting, turn, p)]
                    if not missing:
                        break
            if turn:
                continue
            also = [("verl", s, asked.also_repeats) for s in asked.also]
            also += [("ours", s, asked.repeats) for s in asked.also_ours]
            for engine, setting, repeated in also:
                if setting != orders[engine][0]:
                    self.measure(f"{engine} at {setting}", setting, points[:1], turn, repeated)

    def fits(self, run: str, setting: str, turn: int, point: dict) -> bool:
        key = {"run": run, "setting": setting, "turn": turn, "point": point}
        return total(self.record.find("runs", key)) < math.inf


def summarise(record: dict, shape: dict) -> dict:
    """By point: seconds, peak and setting of each run, and verl's seconds over ours with the law's."""
    points: dict[str, dict] = {}
    for entry in record["runs"]:
        if total(entry["measured"]) == math.inf:
            continue
        point = points.setdefault(entry["point_name"], {"point": entry["point"], "runs": {}})
        run = point["runs"].setdefault(entry["run"], {"setting": entry["setting"], "turns": []})
        run["turns"].append(entry["measured"])
    for point in points.values():
        for run in point["runs"].values():
            turns = run.pop("turns")
            parts = turns[0]["seconds"]
            run["seconds"] = {p: statistics.mean(statistics.mean(t["seconds"][p]) for t in turns) for p in parts}
            run["of_turns"] = [total(turn) for turn in turns]
            run["together"] = sum(run["seconds"].values())
            run["timed_steps"] = sum(len(t["seconds"][PARTS[-1]]) for t in turns)
            run["peak_gib"] = max(t["peak_gib"] or 0.0 for t in turns) or None
            run["tokens_ratio"] = turns[0]["tokens_ratio"]
        law, verl = flops(point["point"], shape), point["runs"].get("verl")
        point["flops"] = law
        for name, run in point["runs"].items():
            if verl and name in law and name != "verl":
                run["ratio"] = verl["together"] / run["together"]
                run["ratio_of_turns"] = [a / b for a, b in zip(verl["of_turns"], run["of_turns"])]
                run["ratio_law"] = law["verl"] / law[name]
    return points


def show(name: str, entry: dict) -> list[str]:
    point = entry["point"]
    lines = [f"{name}: {point['prompts']} prompts of {point['prompt']} x {point['n']} answers of {point['answer']}"]
    for run, found in entry["runs"].items():
        parts = ", ".join(f"{part} {value:.3f}" for part, value in found["seconds"].items())
        peak = f", peak {found['peak_gib']:.1f} GiB" if found["peak_gib"] else ""
        ratio = ""
        if "ratio" in found:
            turns = ", ".join(f"{ratio:.2f}" for ratio in found["ratio_of_turns"])
            ratio = f"; verl takes {found['ratio']:.2f} times as long (by turn {turns}; law {found['ratio_law']:.2f})"
        timed = found["timed_steps"]
        lines.append(
            f"  {run}, {found['setting']}: {parts}, together {found['together']:.3f} s, {timed} steps{peak}{ratio}"
        )
    return lines


def arguments_of(argv: list[str]):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="folder of a model (default: a random one of --size)")
    parser.add_argument("--size", choices=SIZES, default="small", help="architecture of the random model")
    parser.add_argument("--prompts", type=int, default=16, help="of a step (default %(default)s)")
    parser.add_argument("--n", type=int, default=8, help="answers to each (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=950, help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--answer", type=int, default=230, help="tokens of an answer, mean (default %(default)s)")
    parser.add_argument("--stock", nargs="+", default=["rows=8"], help="verl's settings to try (default rows=8)")
    parser.add_argument("--ours", nargs="+", default=["tokens=16384"], help="ours (default tokens=16384)")
    parser.add_argument("--also", nargs="+", default=[], help="settings of verl's measured whichever is the fastest")
    parser.add_argument("--also-ours", nargs="+", default=[], help="likewise of ours, for one with a lower peak")
    parser.add_argument("--also-repeats", type=int, default=2, help="timed steps of --also (default %(default)s)")
    parser.add_argument("--trial-prompts", type=int, default=4, help="prompts of a trial (default %(default)s)")
    parser.add_argument("--warm-prompts", type=int, help="prompts of the first, untimed step (default: all)")
    parser.add_argument("--vary", action="append", default=[], metavar="NAME=V,V,..", help="n, prompt, answer, prompts")
    parser.add_argument("--repeats", type=int, default=8, help="timed steps of each turn (default %(default)s)")
    parser.add_argument("--stock-repeats", type=int, help="verl's, where a step takes long (default: --repeats)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of all runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True, help="OUT.json and OUT.png are written")
    arguments = parser.parse_args(argv)
    for text in (*arguments.stock, *arguments.ours, *arguments.also, *arguments.also_ours):
        try:
            parse_setting(text)
        except ValueError as error:
            parser.error(str(error))
    for text in arguments.vary:
        name, _, values = text.partition("=")
        if name not in ("n", "prompt", "answer", "prompts") or not all(v.isdigit() for v in values.split(",")):
            parser.error(f"--vary {text}: n, prompt, answer or prompts, =, and numbers with commas between them")
    return arguments


def main() -> int:
    arguments = arguments_of(sys.argv[1:])
    # a name may have a dot in it
    out = {ending: Path(f"{arguments.out}{ending}") for ending in (".json", ".png", "_law.png")}
    with tempfile.TemporaryDirectory() as scratch:
        from transformers import AutoConfig

        if arguments.model:
            model, vocabulary = arguments.model, AutoConfig.from_pretrained(arguments.model).vocab_size
        else:
            vocabulary = SIZES[arguments.size][-1]
            model = str(make_model(Path(scratch) / "model", arguments.size, vocabulary)[0])
        config = AutoConfig.from_pretrained(model)
        head = vocabulary * config.hidden_size
        # tied or not, the embedding is no product
        body = sum(math.prod(shape) for shape in _matrices(model)) - head * (1 if config.tie_word_embeddings else 2)
        shape = {"body": body, "head": head, "layers": config.num_hidden_layers, "width": config.hidden_size}
        names = ("prompts", "n", "prompt", "answer", "seed")
        base = {**{name: getattr(arguments, name) for name in names}, "vocabulary": vocabulary}
        points = [("base", base)]
        for text in arguments.vary:
            name, _, values = text.partition("=")
            points += [(f"{name} {value}", {**base, name: int(value)}) for value in values.split(",")]
        about = {
            "command": shlex.join(["python", "benchmarks/bench_rl.py", *sys.argv[1:]]),
            "machine": machine(arguments.device),
            "versions": {p: importlib.metadata.version(p) for p in ("verl", "torch", "transformers")},
            "model": Path(arguments.model).name if arguments.model else arguments.size,
            "shape": shape,
        }
        record = Record(out[".json"], about)
        Bench(model, arguments, record).compare(points)
    record.data["points"] = summarise(record.data, shape)
    record.path.write_text(json.dumps(record.data, indent=1) + "\n")
    for name, entry in record.data["points"].items():
        print("\n".join(show(name, entry)), flush=True)
    plot_parts(record.data["points"], out[".png"])
    if arguments.vary:
        plot_law(record.data["points"], out["_law.png"])
    print(f"{record.path}, {out['.png']}")
    return 0


def _matrices(model: str):
    """Shapes of a folder's weights, tied ones once."""
    from safetensors import safe_open

    for file in Path(model).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            yield from (weights.get_slice(name).get_shape() for name in weights.keys())


if __name__ == "__main__":
    sys.exit(main())
