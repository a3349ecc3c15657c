"""A ticket system's export, from its CSV to a model that is compared before and after, with no file edited by hand."""

import csv
import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

SYSTEMS = {
    "Web Shop": ("en", ["checkout", "cart-db", "search", "gateway"]),
    "支付平台": ("zh", ["支付网关", "账务库", "风控", "通知"]),
    "CRM": ("en", ["contacts", "mail-relay", "reports", "login"]),
}
CAUSES = {
    "DB deadlock": {
        "en": ("{s} requests time out", "ERROR {s}: deadlock detected, transaction {n} rolled back"),
        "zh": ("{s} 请求超时", "ERROR {s}: 检测到死锁，事务 {n} 已回滚"),
    },
    "Disk full": {
        "en": ("{s} cannot write", "FATAL {s}: no space left on device /data{n}"),
        "zh": ("{s} 无法写入", "FATAL {s}: 磁盘 /data{n} 空间不足"),
    },
    "Memory leak": {
        "en": ("{s} restarts again and again", "{s} killed: OOMKilled, rss {n} MiB"),
        "zh": ("{s} 反复重启", "{s} 被终止：OOMKilled，rss {n} MiB"),
    },
}
COLUMNS = "id=ticket_id,service=component,incident_type=category,symptom=summary,logs=log_excerpt,source=system"


def export(path):
    """60 tickets of three systems, 20 of them in Chinese, under a ticket system's own column names."""
    rows = []
    for system, (lang, services) in SYSTEMS.items():
        for at in range(20):
            number, service = len(rows) + 1, services[at % 4]
            cause = list(CAUSES)[(at + at // 4) % 3]
            summary, line = (text.format(s=service, n=number) for text in CAUSES[cause][lang])
            other = services[(at + 1) % 4]
            rows.append(
                {
                    "ticket_id": f"INC{4700 + number}",
                    "system": system,
                    "component": service,
                    "category": cause.lower() if number % 7 == 0 else cause,
                    "summary": summary,
                    "log_excerpt": f"INFO {other}: 200 OK in {number} ms\n{line}\nWARN {other}: retry 1",
                    "opened": f"2026-03-{at + 1:02} 10:00",
                    "assignee": "ops",
                }
            )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def type_in(tmp_path):
    """type_in(command): what `verl-aiops` prints to it, in the user's folder."""
    environment = {**os.environ, "VERL_AIOPS_CACHE": str(tmp_path / "cache")}

    def run(command, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", "verl_aiops.cli", *command.split(), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        logs = [log.read_text()[-3000:] for log in tmp_path.glob("runs/*/train.log")]
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
        return done.stdout

    return run


def test_from_a_ticket_export_to_a_model_that_is_compared(type_in, tiny_model_dir, tmp_path):
    export(tmp_path / "tickets.csv")
    columns = ("--incidents", "tickets.csv", "--columns", COLUMNS, "--val-share", "0.2")
    said = type_in("build-sft --out sft.parquet --taxonomy-out names.json", *columns)
    assert (
        "60 incidents" in said
        and "en 40, zh 20" in said
        and "fields that nothing reads: opened 60, assignee 60" in said
    )
    assert "incident_type 'DB deadlock' for 'db deadlock'" in said
    names = json.loads((tmp_path / "names.json").read_text(encoding="utf-8"))
    assert set(names) == set(SYSTEMS) and all(sorted(of["incident_types"]) == sorted(CAUSES) for of in names.values())
    type_in("build-prefs --style direct --out prefs.parquet", *columns)
    type_in("build-rl --style direct --out rl.parquet", *columns)

    model = str(tiny_model_dir)
    shown = type_in(
        "sft --data sft.parquet --val sft.val.parquet --out runs/sft --steps 3 --batch-size 8 --model", model
    )
    assert "step 3/3" in shown and "model for the next stage" in shown
    assert "trained by sft" in (tmp_path / "runs" / "sft" / "huggingface" / "README.md").read_text()
    shown = type_in(
        "dpo --model runs/sft/huggingface --data prefs.parquet --val prefs.val.parquet --out runs/dpo --steps 2 "
        "--batch-size 4 data.val_max_samples=8"
    )
    assert "step 2/2" in shown and shown.count("held out, step") == 2

    for stage in ("sft", "dpo"):
        type_in(
            f"eval --model runs/{stage}/huggingface --data rl.val.parquet --out eval/{stage} --limit 6 "
            "--max-response-length 24"
        )
    compared = type_in("compare before=eval/sft after=eval/dpo --out compared")
    assert "2 runs, compared over 6 incidents" in compared and "both fields right" in compared
    assert (tmp_path / "compared" / "report.html").is_file()
    table = type_in(
        "before-after --before runs/sft/huggingface --after runs/dpo/huggingface --pairs prefs.val.parquet "
        "--metrics runs/dpo/metrics.jsonl --out report --questions 4 --max-new-tokens 8"
    )
    assert "pairs ranked right" in table and (tmp_path / "report" / "curves.png").is_file()
