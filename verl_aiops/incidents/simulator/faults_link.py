"""Incident types of the links between services: network, names, certificates, credentials, settings, quotas."""

from __future__ import annotations

from verl_aiops.incidents.simulator.faults import ANY, CODE, ERRORS, SLOW, Fault, Voice
from verl_aiops.incidents.simulator.topology import APP, EDGE

LINK_FAULTS = (
    Fault(
        name="packet_loss",
        kinds=ANY,
        effects=(SLOW, ERRORS),
        own=Voice(
            en=(
                "eth0: {half_pct}% of segments retransmitted on {node}",
                "rx errors on {node} rising, {many} frames dropped",
                "keepalive to {some} peers lost, link of {node} flaps",
            ),
            zh=(
                "eth0：{node} 上 {half_pct}% 的报文段重传",
                "{node} 接收错误增加，丢弃 {many} 帧",
                "与 {some} 个对端的保活丢失，{node} 链路抖动",
            ),
        ),
        remote=Voice(
            en=(
                "link to {callee}: {half_pct}% of packets lost, others are fine",
                "{callee} unreachable by ping in {half_pct}% of tries",
            ),
            zh=("到 {callee} 的链路丢包 {half_pct}%，其他正常", "ping {callee} 有 {half_pct}% 失败"),
        ),
        mild=Voice(en=("eth0: {few} retransmits in an hour",), zh=("eth0：一小时 {few} 次重传",)),
        metrics=("tcp_retransmit_pct={half_pct} (usual 0.{few})",),
        mild_metrics=("tcp_retransmit_pct=0.{few} (usual 0.{few2})",),
        aliases=("network_packet_loss",),
    ),
    Fault(
        name="dns_failure",
        kinds=CODE,
        effects=(ERRORS,),
        own=Voice(
            en=(
                "lookup of every upstream name fails: SERVFAIL from {ip}",
                "getaddrinfo EAI_AGAIN, resolver {ip} does not answer",
                "no such host, {some} lookups failed in 10 s",
            ),
            zh=(
                "所有上游域名解析失败：{ip} 返回 SERVFAIL",
                "getaddrinfo EAI_AGAIN，解析器 {ip} 无应答",
                "找不到主机，10 秒内 {some} 次解析失败",
            ),
        ),
        remote=Voice(
            en=("{callee} answered 502: it cannot resolve any host name",),
            zh=("{callee} 返回 502：无法解析任何主机名",),
        ),
        mild=Voice(en=("resolver {ip} answered in {few} ms",), zh=("解析器 {ip} 应答 {few} ms",)),
        metrics=("name_lookups_failed_1m={some} (usual 0)",),
        mild_metrics=("name_lookups_failed_1m=0",),
        aliases=("dns_resolution_failure",),
    ),
    Fault(
        name="certificate_expired",
        kinds=ANY,
        effects=(ERRORS,),
        own=Voice(
            en=(
                "TLS: own certificate notAfter passed {few} h ago, clients hang up",
                "handshake rejected by {ip}: certificate has expired",
                "renewal failed {few} times, serving an outdated certificate",
            ),
            zh=(
                "TLS：本服务证书已于 {few} 小时前到期，客户端断开",
                "{ip} 拒绝握手：证书已过期",
                "证书续期失败 {few} 次，仍在使用旧证书",
            ),
        ),
        remote=Voice(
            en=("x509 error from {callee}: certificate has expired",), zh=("{callee} 的 x509 错误：证书已过期",)
        ),
        mild=Voice(en=("certificate valid for {days} more days",), zh=("证书还有 {days} 天有效期",)),
        metrics=("certificate_days_left=-1 handshakes_failed_1m={some}",),
        mild_metrics=("certificate_days_left={days} handshakes_failed_1m=0",),
    ),
    Fault(
        name="credential_rejected",
        kinds=(APP, EDGE),
        effects=(ERRORS,),
        own=Voice(
            en=(
                "signature check fails for every caller: key id k{few} unknown since rotation",
                "secret mounted {days} days ago no longer accepted anywhere (401)",
                "own service account denied: token revoked",
            ),
            zh=(
                "所有调用方验签失败：轮换后密钥 k{few} 未知",
                "{days} 天前挂载的密钥已失效（401）",
                "本服务账号被拒：令牌已吊销",
            ),
        ),
        remote=Voice(
            en=("{callee} answers 401 to valid tokens, key id k{few} unknown to it",),
            zh=("{callee} 对有效令牌返回 401，不认识密钥 k{few}",),
        ),
        mild=Voice(en=("one request with a stale token from {ip}, 401",), zh=("来自 {ip} 的一个请求令牌过期，401",)),
        metrics=("token_rejects_1m={many} (usual {few})",),
        mild_metrics=("token_rejects_1m={few} (usual {few2})",),
        aliases=("auth_failure",),
    ),
    Fault(
        name="bad_config",
        kinds=ANY,
        effects=(ERRORS, SLOW),
        own=Voice(
            en=(
                "setting {key}: cannot parse the new value, falling back to 0",
                "reload {hash} accepted with {key}=-1, all requests hit it",
                "schema check after reload: {key} missing, feature disabled",
            ),
            zh=(
                "配置 {key}：新值无法解析，回退为 0",
                "重载 {hash} 后 {key}=-1，影响所有请求",
                "重载后检查：缺少 {key}，功能关闭",
            ),
        ),
        remote=Voice(
            en=("{callee} rejects calls since its reload: {key} is out of range",),
            zh=("{callee} 重载后拒绝调用：{key} 超出范围",),
        ),
        mild=Voice(
            en=("reload {hash} fine, nothing changed", "{key} left at its default"),
            zh=("重载 {hash} 正常，无变化", "{key} 保持默认值"),
        ),
        metrics=("config_errors=1 config_version={hash} (before {rid})",),
        mild_metrics=("config_errors=0 config_version={hash}",),
        aliases=("misconfiguration",),
    ),
    Fault(
        name="pool_exhausted",
        kinds=(APP,),
        effects=(SLOW, ERRORS),
        own=Voice(
            en=(
                "no connection from the pool within 3000 ms: {pool} of {pool} in use, {some} waiting",
                "connection leak suspected: {pool} borrowed, none returned for {big_s} s",
                "pool timeout for {op}, {some} callers in line",
            ),
            zh=(
                "3000 ms 内取不到连接：{pool}/{pool} 已占用，{some} 个等待",
                "疑似连接泄漏：借出 {pool} 个，{big_s} 秒无归还",
                "{op} 等待连接池超时，{some} 个排队",
            ),
        ),
        remote=Voice(
            en=("{callee} answered 503: its connection pool has none left",), zh=("{callee} 返回 503：其连接池已空",)
        ),
        mild=Voice(en=("pool: {few} of {pool} connections borrowed",), zh=("连接池：借出 {few}/{pool}",)),
        metrics=("pool_in_use={pool} of {pool} pool_waiters={some}",),
        mild_metrics=("pool_in_use={few} of {pool} pool_waiters=0",),
        aliases=("connection_pool_exhausted",),
    ),
    Fault(
        name="quota_exceeded",
        kinds=(APP,),
        effects=(ERRORS,),
        own=Voice(
            en=(
                "{partner} answers 429, daily quota of {many} calls used up",
                "outside partner throttles us: {some} requests denied, resets in {few} h",
                "plan limit at {partner} hit, {bad_pct}% of outbound calls denied",
            ),
            zh=(
                "{partner} 返回 429，当日配额 {many} 次已用完",
                "外部合作方限流：拒绝 {some} 个请求，{few} 小时后恢复",
                "达到 {partner} 套餐上限，{bad_pct}% 的外呼被拒",
            ),
        ),
        remote=Voice(
            en=("{callee} answered 424: its outside partner denies it with 429",),
            zh=("{callee} 返回 424：其外部合作方以 429 拒绝",),
        ),
        mild=Voice(en=("{mid_pct}% of the quota at {partner} used",), zh=("{partner} 配额已用 {mid_pct}%",)),
        metrics=("partner_429_1m={some} (usual 0)",),
        mild_metrics=("partner_429_1m=0 quota_used_pct={mid_pct}",),
        aliases=("rate_limited",),
    ),
    Fault(
        name="clock_skew",
        kinds=ANY,
        effects=(ERRORS,),
        own=Voice(
            en=(
                "local clock is {big_s} s ahead of ntp, stamps land in the future",
                "time sync lost on {node}, offset +{big_s} s",
                "leases end before they begin, offset {big_s} s against peers",
            ),
            zh=(
                "本机时钟比 ntp 快 {big_s} 秒，时间戳落在未来",
                "{node} 时间同步丢失，偏移 +{big_s} 秒",
                "租约未开始就结束，与对端相差 {big_s} 秒",
            ),
        ),
        remote=Voice(
            en=("{callee} sent a stamp {big_s} s in the future, message refused",),
            zh=("{callee} 发来的时间戳超前 {big_s} 秒，消息被拒",),
        ),
        mild=Voice(en=("clock offset {few} ms, in sync",), zh=("时钟偏移 {few} ms，同步正常",)),
        metrics=("clock_offset_s={big_s} (usual 0.0{few})",),
        mild_metrics=("clock_offset_s=0.0{few}",),
    ),
)
