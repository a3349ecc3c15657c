"""Incident types that begin in a process or its machine."""

from __future__ import annotations

from verl_aiops.incidents.simulator.faults import ANY, CODE, ERRORS, SLOW, Fault, Voice
from verl_aiops.incidents.simulator.topology import APP, CACHE, DB, EDGE, QUEUE, STORE

HOST_FAULTS = (
    Fault(
        name="latency_spike",
        kinds=CODE,
        effects=(SLOW,),
        own=Voice(
            en=(
                "{op} took {slow_ms} ms, {bad_pct}% of it in our own handler, no wait on others",
                "slow handler: self time {slow_ms} ms against a budget of 300 ms, rid {rid}",
                "request {rid} done after {slow_s} s; calls to others took only {ok_ms} ms of that",
                "profiler: render step {slow_ms} ms per request since release {version}, was {ok_ms} ms",
            ),
            zh=(
                "{op} 耗时 {slow_ms} ms，其中 {bad_pct}% 在本进程处理逻辑内",
                "处理过慢：自身耗时 {slow_ms} ms，预算 300 ms，rid {rid}",
                "请求 {rid} 用时 {slow_s} 秒，下游合计只占 {ok_ms} ms",
            ),
        ),
        remote=Voice(
            en=("{callee} reports server-timing self={slow_ms} ms, downstream={ok_ms} ms for {op}",),
            zh=("{callee} 返回 server-timing 自身={slow_ms} ms，下游={ok_ms} ms",),
        ),
        mild=Voice(
            en=("{op} took {ok_ms} ms, within budget", "one slow request of {ok_s} s after a cold start, rid {rid}"),
            zh=("{op} 耗时 {ok_ms} ms，在预算内", "冷启动后单个请求用时 {ok_s} 秒，rid {rid}"),
        ),
        metrics=("self_time_p99_ms={slow_ms} (usual {ok_ms}) downstream_p99_ms={ok_ms2}",),
        mild_metrics=("self_time_p99_ms={ok_ms} (usual {ok_ms2})",),
        aliases=("high_latency",),
    ),
    Fault(
        name="error_rate_spike",
        kinds=(EDGE, APP, DB, CACHE, QUEUE, STORE),
        effects=(ERRORS,),
        own=Voice(
            en=(
                "{some} of the last 500 requests ended in an internal error raised here",
                "unhandled {cls} at {file}, request {rid} aborted",
                "internal error {hash}: {cls} while serving {rid}, {bad_pct}% of calls now fail",
                "failure ratio of own code path {bad_ratio}, alarm threshold 0.05",
            ),
            zh=(
                "最近 500 个请求中有 {some} 个在本服务内部出错",
                "未捕获的 {cls}，位置 {file}，请求 {rid} 中止",
                "自身代码路径失败率 {bad_ratio}，告警阈值 0.05",
            ),
        ),
        remote=Voice(
            en=(
                "{callee} answered 500 internal error ({cls} at {file})",
                "{callee} fails {bad_pct}% of calls with internal error {hash}",
            ),
            zh=("{callee} 返回 500 内部错误（{cls}，{file}）", "{callee} 有 {bad_pct}% 的调用以内部错误 {hash} 结束"),
        ),
        mild=Voice(
            en=("one {cls} at {file}, retried with success, rid {rid}", "failure ratio {ok_ratio}, normal"),
            zh=("出现一次 {cls}（{file}），重试成功，rid {rid}", "失败率 {ok_ratio}，正常"),
        ),
        metrics=("own_failure_ratio={bad_ratio} (usual {ok_ratio})",),
        mild_metrics=("own_failure_ratio={ok_ratio} (usual {ok_ratio2})",),
        aliases=("high_error_rate",),
    ),
    Fault(
        name="oom",
        kinds=ANY,
        effects=(ERRORS, SLOW),
        own=Voice(
            en=(
                "kernel: Out of memory: killed process {pid}, rss {mib} MiB at the cgroup limit",
                "allocation of {many} bytes refused, {mib} MiB limit reached, process exits with 137",
                "container restarted, last state: exit code 137, memory limit {mib}Mi",
                "java.lang.OutOfMemoryError: heap of {mib} MiB used up",
            ),
            zh=(
                "内核：内存耗尽，进程 {pid} 被杀，rss 达到上限 {mib} MiB",
                "申请 {many} 字节失败，已到 {mib} MiB 上限，进程以 137 退出",
                "容器重启，上次退出码 137，内存上限 {mib}Mi",
            ),
        ),
        remote=Voice(
            en=(
                "connection to {callee} dropped, its container came back with exit code 137",
                "{callee} refused: cannot allocate memory",
            ),
            zh=("与 {callee} 的连接中断，对方容器退出码 137", "{callee} 拒绝：无法分配内存"),
        ),
        mild=Voice(
            en=("memory at {mid_pct}% after collection, nothing to do", "heap grew to {mid_pct}% and fell back"),
            zh=("回收后内存占用 {mid_pct}%，无需处理", "堆增长到 {mid_pct}% 后回落"),
        ),
        metrics=("memory_used={mib}Mi of {mib}Mi restarts_5m={few}",),
        mild_metrics=("memory_used_pct={mid_pct} (usual {mid_pct2}) restarts_5m=0",),
        aliases=("out_of_memory",),
    ),
    Fault(
        name="cpu_saturation",
        kinds=ANY,
        effects=(SLOW,),
        own=Voice(
            en=(
                "scheduler: throttled in {bad_pct}% of periods, run length {some} on 4 cores",
                "worker loop late by {slow_ms} ms, all cores busy",
                "load average {some}.{few} on 4 cores, shedding background work",
            ),
            zh=(
                "调度：{bad_pct}% 的周期被限流，4 核上等待 {some} 个任务",
                "工作循环滞后 {slow_ms} ms，所有核心满载",
                "4 核机器负载 {some}.{few}，暂停后台任务",
            ),
        ),
        remote=Voice(
            en=("{callee} sheds load: all cores busy, retry after {few} s",),
            zh=("{callee} 主动降载：所有核心满载，{few} 秒后重试",),
        ),
        mild=Voice(
            en=("batch job used {mid_pct}% of one core for {few} s, done", "load average 1.{few} on 4 cores"),
            zh=("批任务占用单核 {mid_pct}% 共 {few} 秒，已结束", "4 核机器负载 1.{few}"),
        ),
        metrics=("cpu_used_pct={bad_pct} (usual {mid_pct}) throttled_pct={bad_pct}",),
        mild_metrics=("cpu_used_pct={mid_pct} (usual {mid_pct2}) throttled_pct=0",),
        aliases=("high_cpu",),
    ),
    Fault(
        name="disk_full",
        kinds=(DB, QUEUE, STORE, APP),
        effects=(ERRORS,),
        own=Voice(
            en=(
                "write to {volume} failed: No space left on device",
                "could not extend file, {volume} has 0 bytes free; read-only from now on",
                "segment roll refused, {volume} at 100%",
            ),
            zh=(
                "写入 {volume} 失败：设备上没有剩余空间",
                "无法扩展文件，{volume} 剩余 0 字节，转为只读",
                "{volume} 已用 100%，拒绝新段",
            ),
        ),
        remote=Voice(
            en=(
                "{callee} rejects writes: no space left on device",
                "{callee} went read-only, its volume {volume} has no free bytes",
            ),
            zh=("{callee} 拒绝写入：设备空间不足", "{callee} 转为只读，卷 {volume} 无剩余空间"),
        ),
        mild=Voice(
            en=("{volume} at {mid_pct}%, next clean-up in {few} h", "rotated logs on {volume}, {mid_pct}% used"),
            zh=("{volume} 已用 {mid_pct}%，{few} 小时后清理", "{volume} 日志轮转完成，已用 {mid_pct}%"),
        ),
        metrics=("disk_used_pct=100 (usual {mid_pct}) write_errors={some}",),
        mild_metrics=("disk_used_pct={mid_pct} (usual {mid_pct2}) write_errors=0",),
        aliases=("no_space_left",),
    ),
    Fault(
        name="gc_pause",
        kinds=(APP, STORE, QUEUE),
        effects=(SLOW,),
        own=Voice(
            en=(
                "full collection stopped the world for {slow_ms} ms, old generation {bad_pct}%",
                "GC overhead: {bad_pct}% of the last minute spent collecting",
                "pause of {slow_s} s (compaction), {few} in the last minute",
            ),
            zh=(
                "完全回收暂停 {slow_ms} ms，老年代 {bad_pct}%",
                "最近一分钟 {bad_pct}% 的时间用于垃圾回收",
                "压缩暂停 {slow_s} 秒，一分钟内 {few} 次",
            ),
        ),
        remote=Voice(
            en=("{callee} froze {slow_ms} ms, its heartbeat says gc={slow_ms}",),
            zh=("{callee} 停顿 {slow_ms} ms，心跳信息 gc={slow_ms}",),
        ),
        mild=Voice(
            en=("young collection {few} ms, old generation {mid_pct}%", "GC took {low_pct} ms"),
            zh=("年轻代回收 {few} ms，老年代 {mid_pct}%", "垃圾回收 {low_pct} ms"),
        ),
        metrics=("collector_stop_max_ms={slow_ms} (usual {low_pct}) gc_time_pct={bad_pct}",),
        mild_metrics=("collector_stop_max_ms={low_pct} (usual {few}) gc_time_pct={few2}",),
    ),
    Fault(
        name="thread_pool_exhausted",
        kinds=CODE,
        effects=(SLOW, ERRORS),
        own=Voice(
            en=(
                "task rejected: {pool} of {pool} threads busy, backlog 1000 of 1000",
                "no free worker thread for {slow_ms} ms, {some} requests waiting",
                "executor full, oldest task waits {slow_s} s",
            ),
            zh=(
                "任务被拒：{pool}/{pool} 线程忙，积压 1000/1000",
                "{slow_ms} ms 内没有空闲工作线程，{some} 个请求等待",
                "执行器已满，最早的任务等待 {slow_s} 秒",
            ),
        ),
        remote=Voice(
            en=("{callee} turned us away: executor full, {some} ahead",),
            zh=("{callee} 拒绝请求：执行器已满，前面还有 {some} 个",),
        ),
        mild=Voice(
            en=("executor: {few} of {pool} threads busy", "worker pool resized to {pool}"),
            zh=("执行器：{few}/{pool} 线程忙", "工作线程池调整为 {pool}"),
        ),
        metrics=("threads_busy={pool} of {pool} tasks_rejected_1m={some}",),
        mild_metrics=("threads_busy={few} of {pool} tasks_rejected_1m=0",),
    ),
    Fault(
        name="fd_exhausted",
        kinds=(EDGE, APP, CACHE),
        effects=(ERRORS,),
        own=Voice(
            en=(
                "accept failed: Too many open files, limit 1024",
                "socket: EMFILE, {some} descriptors leaked since start",
                "cannot open {volume}/tmp: EMFILE",
            ),
            zh=(
                "accept 失败：打开的文件过多，上限 1024",
                "socket：EMFILE，启动以来泄漏 {some} 个描述符",
                "无法打开 {volume}/tmp：EMFILE",
            ),
        ),
        remote=Voice(
            en=("{callee} closes new connections at once (EMFILE)",),
            zh=("{callee} 立即关闭新连接（EMFILE）",),
        ),
        mild=Voice(en=("{some} descriptors open, limit 1024",), zh=("已打开 {some} 个描述符，上限 1024",)),
        metrics=("open_fds=1024 of 1024 accept_errors={some}",),
        mild_metrics=("open_fds={some} of 1024 accept_errors=0",),
    ),
    Fault(
        name="crash_loop",
        kinds=ANY,
        effects=(ERRORS,),
        own=Voice(
            en=(
                "back-off restarting container, {few} restarts in 5 min, exit code 139",
                "segmentation fault in worker {pid}, restarting again",
                "panic: nil map at {file}, process ends {few} s after start",
            ),
            zh=(
                "容器反复重启，5 分钟内 {few} 次，退出码 139",
                "工作进程 {pid} 段错误，再次重启",
                "panic：{file} 空映射，启动 {few} 秒后退出",
            ),
        ),
        remote=Voice(
            en=("{callee} refuses connections, its pod is in back-off after exit code 139",),
            zh=("{callee} 拒绝连接，其 pod 因退出码 139 处于退避重启",),
        ),
        mild=Voice(
            en=("restarted once for release {version}, ready in {few} s",),
            zh=("因发布 {version} 重启一次，{few} 秒后就绪",),
        ),
        metrics=("restarts_5m={few} last_exit_code=139 ready=0",),
        mild_metrics=("restarts_5m=0 ready=1",),
    ),
)
