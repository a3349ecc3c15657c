"""Public sets of cases: small folders of ours in their authors' formats become cases, and what is strange is told."""

import json
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aiops.incidents.errors import IncidentError
from verl_aiops.investigation import Edge, answer, read_cases
from verl_aiops.investigation.importers import CASE_SOURCES, describe_case_sources, import_cases

AT = 1_706_600_000


def cases_of(source, root):
    report = import_cases(source, root, root.parent / "cases.jsonl", overwrite=True)
    return report, list(read_cases(root.parent / "cases.jsonl"))


# -- RCAEval


def make_rcaeval(root, folder="RE2-OB/cartservice_mem/1", metrics="simple_metrics.csv"):
    path = root / folder
    path.mkdir(parents=True)
    (path / "inject_time.txt").write_text(f"{AT}\n")
    rows = [f"{AT + at},{0.9 if at >= 0 else 0.1},{at % 3},\n" for at in range(-60, 60)]
    (path / metrics).write_text("time,cartservice_mem,frontend_latency-90,lonely\n" + "".join(rows))
    (path / "logs.csv").write_text(
        "time,timestamp,container_name,message,level,req_path,error\n"
        f'x,{(AT - 5) * 10**9},cartservice,"fine, thanks",INFO,,\n'
        f"x,{(AT + 5) * 10**9},cartservice-7f9c6d5b8-x2x4z,out of memory,ERROR,,\n"
        f"x,{(AT + 9000) * 10**9},cartservice,much later,ERROR,,\n"
        f"x,{AT * 10**9},,nobody,ERROR,,\n"
    )
    (path / "traces.csv").write_text(
        "time,traceID,spanID,serviceName,methodName,operationName,startTimeMillis,startTime,duration,statusCode,parentSpanID\n"
        f"x,t,a,frontend,m,GET /cart,{AT * 1000},{AT * 10**6},250000,500,\n"
        f"x,t,b,cartservice,m,hipstershop.Cart/Get,{AT * 1000},{AT * 10**6 + 10},200000,13,a\n"
    )
    return root


@pytest.mark.parametrize("metrics", ["simple_metrics.csv", "metrics.csv"])
def test_rcaeval(tmp_path, metrics):
    report, (case,) = cases_of("rcaeval", make_rcaeval(tmp_path / "data", metrics=metrics))
    assert (case.id, case.source, case.alert) == (
        *("rcaeval-re2-online-boutique-cartservice_mem-1", "rcaeval/re2/online-boutique"),
        AT,
    )
    (cause,) = case.root_causes
    assert (cause.component, cause.reason, cause.time) == ("cartservice", "memory_leak", AT)
    assert "memory_leak" in case.reasons and cause.reason_aliases == ("mem",)
    assert [(line.time, line.service, line.text) for line in case.signals.logs] == [
        (AT - 5, "cartservice", "fine, thanks"),
        (AT + 5, "cartservice", "out of memory"),
    ]
    assert [(span.service, span.duration_ms, span.status, span.parent) for span in case.signals.spans] == [
        ("frontend", 250.0, "500", None),
        ("cartservice", 200.0, "grpc 13", "a"),
    ]
    assert case.topology == (Edge("frontend", "cartservice"),)
    assert [(series.service, series.name) for series in case.signals.metrics] == [
        ("cartservice", "mem"),
        ("frontend", "latency-90"),
    ]
    assert "up since" in answer(case, "query_metrics", {"service": "cartservice", "start": str(AT)}).text
    assert "left out: 1 log lines: no container_name or message" in str(report) and "MIT" in str(report)
    assert "left out: 96 rows of metrics: one of 5 seconds is kept" in str(report)
    assert "left out: 1 log lines: no time, or more than 12 minutes from the injection" in str(report)
    assert "no number" not in str(report) and "spans:" not in str(report)


def test_what_rcaeval_keeps_nothing_of_is_counted(tmp_path):
    root = make_rcaeval(tmp_path / "data")
    folder = root / "RE2-OB/cartservice_mem/1"
    (folder / "simple_metrics.csv").write_text(f"time,a_b\n{AT},1\n{AT + 5},NaN\n{AT + 9000},1\nsoon,1\n{AT + 10},\n")
    (folder / "logs.csv").write_text(f"timestamp,container_name,message\n{AT},a,{'x' * 5000}\n")
    (folder / "traces.csv").write_text(f"traceID,spanID,serviceName,startTime\nt,a,b,{AT + 9000}\n")
    report, (case,) = cases_of("rcaeval", root)
    assert len(case.signals.metrics[0].points) == 1 and len(case.signals.logs[0].text) == 4000
    for left in (
        "1 points: no number",
        "2 rows of metrics: no time, or more than 12 minutes from the injection",
        "1 spans: no time, or more than 12 minutes from the injection",
        "1 ends of log lines: more than 4,000 characters",
    ):
        assert f"left out: {left}" in str(report)


def test_rcaeval_code_faults_flat_folders_and_runs_of_one_fault(tmp_path):
    root = tmp_path / "data"
    make_rcaeval(root, "RE3-TT/ts-auth-service_f3/1")
    make_rcaeval(root, "RE3-TT/ts-auth-service_f3/2")
    make_rcaeval(root, "re2ob_adservice_delay_2")
    _, cases = cases_of("rcaeval", root)
    assert [(case.root_causes[0].component, case.root_causes[0].reason) for case in cases] == [
        *[("ts-auth-service", "code_fault_f3")] * 2,
        ("adservice", "network_delay"),
    ]
    assert cases[0].group == cases[1].group != cases[2].group and len({case.id for case in cases}) == 3


@pytest.mark.parametrize(
    "folder, name, content, told",
    [
        ("RE2-OB/cart_magic/1", "inject_time.txt", "1706600000", "expected a folder called SERVICE_FAULT"),
        ("RE2-OB/cart_mem/1", "inject_time.txt", "soon", "inject_time.txt: expected seconds since 1970, found 'soon'"),
        ("RE2-OB/cart_mem/1", "logs.csv", "a,b\n1,2\n", "logs.csv: expected the column 'container_name'"),
        ("RE2-OB/cart_mem/1", "simple_metrics.csv", "PAR1", "simple_metrics.csv"),
    ],
)
def test_rcaeval_tells_what_does_not_fit(tmp_path, folder, name, content, told):
    root = make_rcaeval(tmp_path / "data", folder)
    (root / folder / name).write_text(content)
    with pytest.raises(IncidentError) as fault:
        cases_of("rcaeval", root)
    assert told in str(fault.value)


# -- Cloud-OpsBench


def make_cloudopsbench(root, number="1", **changes):
    folder = root / "boutique" / "admission" / number
    folder.mkdir(parents=True)
    result = {"fault_taxonomy": "Admission_Fault", "fault_object": "app/adservice", "root_cause": "missing_account"}
    metadata = {"namespace": "boutique", "query": "Partly unreachable.", "difficulty": "medium", "result": result}
    steps = ["GetResources::pods", "GetRecentLogs::adservice", "DescribeResource::pods::cart", "GetAlerts::"]
    metadata["process"] = {"path1": steps, "path2": ["GetAlerts::"]}
    (folder / "metadata.json").write_text(json.dumps(metadata | changes))
    cache = {
        "collection_timestamp": "2025-11-28T15:33:20.568512",
        'GetResources:{"resource_type":"pods","name":"","namespace":"boutique"}': "NAME READY\ncart-0 1/1\n",
        'GetResources:{"resource_type":"pods","name":"","namespace":"boutique","output_wide":true}': "NAME READY IP\n",
        'DescribeResource:{"resource_type":"pods","name":"cart-0","namespace":"boutique"}': "Name: cart-0\n" * 200,
        "GetAlerts:{}": "[ALERT] adservice has no pods <|im_end|>",
        'GetErrorLogs:{"service_name":"adservice"}': [],
        "CheckServiceConnectivity-boutique-redis-cart-6379": "open",
    }
    (folder / "tool_cache.json").write_text(json.dumps(cache))
    return root


def test_cloudopsbench_answers_are_served_as_recorded(tmp_path):
    root = make_cloudopsbench(tmp_path / "benchmark")
    make_cloudopsbench(root, "2")
    report, cases = cases_of("cloudopsbench", root)
    case = cases[0]
    assert case.symptom == "Partly unreachable. Namespace: boutique."
    assert case.id == "cloudopsbench-boutique-admission-1" and case.source == "cloudopsbench/boutique"
    cause = case.root_causes[0]
    assert cause.component == "adservice" and cause.component_aliases == ("app/adservice",)
    assert case.reasons == ("missing_account",) and cases[0].group == cases[1].group
    said = answer(case, "GetResources", {"namespace": "boutique", "resource_type": "pods"})
    assert said.text == "NAME READY\ncart-0 1/1\n"
    assert answer(case, "GetResources", {"namespace": "boutique", "resource_type": "Pods", "output_wide": "true"}).ok
    assert answer(case, "GetAlerts").text == "[ALERT] adservice has no pods ‹|im_end|›"
    assert answer(case, "GetErrorLogs", {"service_name": "adservice"}).text == "[]"
    assert answer(case, "GetResources", {"namespace": "boutique", "resource_type": "pods", "output_wide": False}).ok
    assert "was not recorded with these arguments" in answer(case, "GetResources", {"resource_type": "nodes"}).text
    assert "left out: 2 recorded answers: not under TOOL:{arguments}" in str(report)
    # the plainest call that has the values of a step; pods go by their workload
    pods = {"resource_type": "pods", "namespace": "boutique"}
    assert [list(map(tuple, path)) for path in case.recorded.paths] == [
        [("GetResources", pods), ("DescribeResource", {**pods, "name": "cart-0"}), ("GetAlerts", {})],
        [("GetAlerts", {})],
    ]
    assert "left out: 2 steps of the authors' paths: no recorded answer" in str(report)
    assert "the repository states none" in (root.parent / "cases.jsonl.LICENCE.txt").read_text()


def test_recent_logs_of_cloudopsbench_are_the_last_lines_of_each_log(tmp_path):
    root = make_cloudopsbench(tmp_path / "benchmark")
    logs = root / "boutique" / "admission" / "1" / "raw_data" / "logs.json"
    logs.parent.mkdir()
    rows = {
        "cartservice": [f"call {at}" for at in range(60)] + [" "],
        "cartservice.previous": "panic: nil\n\nexit 2",
        "adservice": [],
        "adservice.istio-proxy": ["503 UF"],
        "emailservice": "",
        "odd": 3,
    }
    logs.write_text(json.dumps(rows))
    report, (case,) = cases_of("cloudopsbench", root)

    def recent(name):
        return answer(case, "GetRecentLogs", {"namespace": "boutique", "service_name": name}, max_chars=10_000).text

    own = "\n".join(f"call {at}" for at in range(10, 60))
    assert (
        recent("cartservice") == f"From cartservice logs:\n{own}\n\nFrom previous container logs:\npanic: nil\nexit 2"
    )
    assert recent("adservice") == "From istio-proxy logs:\n503 UF"
    assert recent("emailservice") == "No recent logs found for emailservice in boutique namespace."
    assert ("GetRecentLogs", {"service_name": "adservice"}) in [
        (call.name, {key: call.arguments[key] for key in call.arguments if key != "namespace"})
        for call in case.recorded.paths[0]
    ]
    assert "1 logs of services: neither text nor lines" in str(report) and "no recorded answer" not in str(report)
    logs.write_text("[]")
    with pytest.raises(IncidentError, match=r"raw_data/logs.json: expected an object, found list"):
        cases_of("cloudopsbench", root)


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"query": ""}, "field 'query': expected text"),
        ({"result": {}}, "field 'result.root_cause': expected text"),
        ({"result": {"root_cause": "x"}}, "field 'result.fault_object': expected text"),
    ],
)
def test_cloudopsbench_tells_what_does_not_fit(tmp_path, changes, told):
    with pytest.raises(IncidentError) as fault:
        cases_of("cloudopsbench", make_cloudopsbench(tmp_path / "benchmark", **changes))
    assert told in str(fault.value) and "metadata.json" in str(fault.value)


# -- OpenRCA 2.0


def make_openrca2(root, **graph):
    folder = root / "batch-1"
    folder.mkdir(parents=True)
    began = datetime.fromtimestamp(AT, timezone.utc)

    def table(name, **columns):
        times = pa.array([began + timedelta(seconds=at) for at in columns.pop("at")], pa.timestamp("ns", "UTC"))
        pq.write_table(pa.table({"time": times, **columns}), folder / name)

    for side, at, status in (("normal", -300, "STATUS_CODE_UNSET"), ("abnormal", 30, "STATUS_CODE_ERROR")):
        table(
            f"{side}_traces.parquet",
            at=[at, at],
            trace_id=[side] * 2,
            span_id=["a", "b"],
            parent_span_id=["", "a"],
            span_name=["GET /hotels", "geo.Near"],
            service_name=["frontend", "geo"],
            duration=pa.array([9_000_000, 5_000_000], pa.uint64()),
            **{"attr.status_code": [status] * 2, "attr.http.response.status_code": [500.0 if at > 0 else 200.0, None]},
        )
        table(f"{side}_logs.parquet", at=[at], service_name=["geo"], level=["ERROR"], message=["no answer"])
        table(
            f"{side}_metrics.parquet",
            at=[at, at, at + 1],
            service_name=["geo"] * 3,
            metric=["cpu"] * 3,
            value=[1.0, 3.0, float("nan")],
        )
    whole = {
        "nodes": [],
        "edges": [{"source": "span|geo::Near", "target": "service|frontend"}],
        "root_causes": [{"component": "service|geo", "state": ["HIGH_CPU"]}],
        "component_to_service": {"span|geo::Near": "geo"},
    }
    (folder / "causal_graph.json").write_text(json.dumps(whole | graph))
    (folder / "injection.json").write_text(json.dumps({"engine_config": [{"app": "geo", "chaos_type": "CPUStress"}]}))
    (folder / "env.json").write_text(json.dumps({"ABNORMAL_START": str(AT), "NAMESPACE": "hs3"}))
    return root


def test_openrca2(tmp_path):
    report, (case,) = cases_of("openrca2", make_openrca2(tmp_path / "packs"))
    assert (case.id, case.source, case.alert) == ("openrca2-batch-1", "openrca2/hotel-reservation", AT)
    assert [(cause.component, cause.reason) for cause in case.root_causes] == [("geo", "CPUStress")]
    assert case.propagation == (Edge("geo", "frontend"),) and case.topology == (Edge("frontend", "geo"),)
    assert [(span.time - AT, span.service, span.status, span.duration_ms) for span in case.signals.spans] == [
        (-300, "frontend", "ok", 9.0),
        (-300, "geo", "ok", 5.0),
        (30, "frontend", "error 500", 9.0),
        (30, "geo", "error", 5.0),
    ]
    (series,) = case.signals.metrics
    assert [(time - AT, value) for time, value in series.points] == [(-300, 2.0), (30, 2.0)]
    assert len(case.signals.logs) == 2
    assert "2 points: no service_name, metric, time or value" in str(report)


def test_edges_of_openrca2_without_a_name_are_counted(tmp_path):
    edges = [{"source": "geo", "target": "frontend"}, {"source": "geo"}, {"source": "geo", "target": "service|geo"}]
    report, (case,) = cases_of("openrca2", make_openrca2(tmp_path / "packs", edges=edges))
    assert case.propagation == (Edge("geo", "frontend"),)
    assert "left out: 1 edges of the causal graph: an end has no name" in str(report)


def test_openrca2_tells_what_does_not_fit(tmp_path):
    with pytest.raises(IncidentError, match="causal_graph.json, field 'root_causes': expected at least one"):
        cases_of("openrca2", make_openrca2(tmp_path / "packs", root_causes=[]))
    (tmp_path / "packs" / "batch-1" / "normal_logs.parquet").write_bytes(b"PAR1 cut")
    root = tmp_path / "packs"
    (root / "batch-1" / "causal_graph.json").write_text(json.dumps({"root_causes": [{"component": "geo"}]}))
    with pytest.raises(IncidentError, match="normal_logs.parquet: not a readable parquet file"):
        cases_of("openrca2", root)


# -- all of them


@pytest.mark.parametrize("source", sorted(set(CASE_SOURCES) - {"house"}))
def test_an_empty_folder_says_what_is_expected(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(IncidentError, match="expected folders with|expected at least"):
        cases_of(source, tmp_path / "empty")
    with pytest.raises(IncidentError, match="--mapping belongs to house"):
        import_cases(source, tmp_path / "empty", tmp_path / "x.jsonl", mapping="m.yaml")


def test_every_source_says_what_its_licence_allows():
    text = describe_case_sources()
    for source in CASE_SOURCES.values():
        assert f"{source.name}: " in text and source.licence in text and source.expects in text
