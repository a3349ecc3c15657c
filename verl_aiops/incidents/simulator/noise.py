"""What in an incident's data is not its cause: line formats, background chatter, effects at callers, symptoms."""

from __future__ import annotations

from collections.abc import Callable

from verl_aiops.incidents.simulator.faults import ERRORS, SLOW, STALE, Voice

# (time of day, level, service, instance, message) -> line
LINE_FORMATS: tuple[Callable[[str, str, str, int, str], str], ...] = (
    lambda time, level, service, instance, message: f"{time} {level} {service} {message}",
    lambda time, level, service, instance, message: f"{time} {service}[{instance}] {level}: {message}",
    lambda time, level, service, instance, message: f"[{time}] {level:<5} [{service}] {message}",
    lambda time, level, service, instance, message: f"time={time} level={level.lower()} svc={service} msg={message}",
)

BACKGROUND = (
    (
        "INFO",
        Voice(
            en=("{op} 200 in {ok_ms} ms rid {rid}", "health check ok"),
            zh=("{op} 200，{ok_ms} ms，rid {rid}", "健康检查正常"),
        ),
    ),
    (
        "INFO",
        Voice(
            en=("accepted connection from {ip}", "flags reloaded, {some} active"),
            zh=("接受来自 {ip} 的连接", "开关已重载，{some} 个生效"),
        ),
    ),
    ("DEBUG", Voice(en=("heartbeat {hash}", "trace sampled, rid {rid}"), zh=("心跳 {hash}", "采样跟踪，rid {rid}"))),
    (
        "INFO",
        Voice(
            en=("release {version} serving", "job {hash} finished in {few} s"),
            zh=("版本 {version} 运行中", "任务 {hash} 用时 {few} 秒完成"),
        ),
    ),
    ("INFO", Voice(en=("metrics flushed, {some} series",), zh=("指标已上报，{some} 条",))),
)
# Alarming words that mean nothing: a model that only looks for levels must fail on them.
UNRELATED = (
    ("WARN", Voice(en=("deprecated header in request from {ip}",), zh=("来自 {ip} 的请求使用了过时的头部",))),
    (
        "WARN",
        Voice(en=("slow client {ip}, body took {ok_s} s to arrive",), zh=("客户端 {ip} 较慢，接收正文用了 {ok_s} 秒",)),
    ),
    ("ERROR", Voice(en=("usage report not sent, will try tonight",), zh=("使用报告未发出，今晚重试",))),
    ("ERROR", Voice(en=("bad input from {ip}: unexpected field, 400",), zh=("{ip} 输入有误：字段未知，400",))),
    ("WARN", Voice(en=("client {ip} hung up before the answer",), zh=("客户端 {ip} 在应答前断开",))),
    ("WARN", Voice(en=("retry 1 of 3 went through, rid {rid}",), zh=("第 1 次重试成功，rid {rid}",))),
)
# A fault's own wording that is not about now: the words alone do not tell what is wrong.
ECHOES = Voice(
    en=("drill in staging: {what}", "closed yesterday, ticket {hash}: {what}", "replaying last week's log: {what}"),
    zh=("预发环境演练：{what}", "昨日已关闭，工单 {hash}：{what}", "回放上周日志：{what}"),
)
# What a caller sees of a fault further down. It names who was called, never why that one fails.
CALLER = {
    SLOW: Voice(
        en=(
            "call to {callee} timed out after 3000 ms, rid {rid}",
            "waiting {slow_ms} ms for {callee}",
            "{callee} has not answered {op} in {slow_s} s",
            "slow response because of {callee}, rid {rid}",
        ),
        zh=("调用 {callee} 3000 ms 超时，rid {rid}", "等待 {callee} {slow_ms} ms", "{callee} {slow_s} 秒未应答 {op}"),
    ),
    ERRORS: Voice(
        en=(
            "call to {callee} failed, attempt {few} of 9, rid {rid}",
            "{callee} answered 503 for {op}",
            "giving up on {callee}, rid {rid}",
            "circuit to {callee} opened after {some} failures",
        ),
        zh=(
            "调用 {callee} 失败，第 {few} 次，rid {rid}",
            "{callee} 对 {op} 返回 503",
            "放弃调用 {callee}，rid {rid}",
            "{some} 次失败后对 {callee} 熔断",
        ),
    ),
    STALE: Voice(
        en=(
            "answer of {callee} is out of date, rid {rid}",
            "nothing new from {callee} for {big_s} s",
            "dropping old data that came from {callee}",
        ),
        zh=("{callee} 的应答已过时，rid {rid}", "{callee} 已 {big_s} 秒没有新数据", "丢弃来自 {callee} 的旧数据"),
    ),
}
CALLER_METRICS = {
    SLOW: "p99_ms={slow_ms} (usual {ok_ms})",
    ERRORS: "http_5xx_ratio={bad_ratio} (usual {ok_ratio})",
    STALE: "data_age_s={big_s} (usual {few})",
}
QUIET_METRICS = (
    "p99_ms={ok_ms} (usual {ok_ms2}) http_5xx_ratio={ok_ratio}",
    "cpu_used_pct={mid_pct} (usual {mid_pct2}) restarts_5m=0",
)
SYMPTOMS = {
    SLOW: Voice(
        en=(
            "{flow}: p95 time is {slow_ms} ms (usual {ok_ms}) since {time}.",
            "{flow}: slow since {time}, users wait about {slow_s} s.",
            "Alert {time}: {flow}, time objective missed for {few} minutes.",
        ),
        zh=(
            "{flow}：自 {time} 起 p95 耗时 {slow_ms} ms（平时 {ok_ms}）。",
            "{flow}在 {time} 变慢，用户等待约 {slow_s} 秒。",
            "{time} 告警：{flow}超出耗时目标 {few} 分钟。",
        ),
    ),
    ERRORS: Voice(
        en=(
            "{flow}: {half_pct}% of attempts fail since {time}.",
            "{flow}: many users report failures, first at {time}.",
            "Alert {time}: {flow}, success rate down to {mid_pct}%.",
        ),
        zh=(
            "{flow}：自 {time} 起 {half_pct}% 的尝试失败。",
            "大量用户反映{flow}失败，最早 {time}。",
            "{time} 告警：{flow}成功率降到 {mid_pct}%。",
        ),
    ),
    STALE: Voice(
        en=(
            "{flow}: what users see is about {few} minutes old since {time}.",
            "{flow}: outdated data reported, first at {time}.",
            "Alert {time}: {flow}, updates late by {big_s} s.",
        ),
        zh=(
            "{flow}：自 {time} 起用户看到的是约 {few} 分钟前的数据。",
            "{flow}数据过时，最早 {time} 报告。",
            "{time} 告警：{flow}延迟 {big_s} 秒。",
        ),
    ),
}
