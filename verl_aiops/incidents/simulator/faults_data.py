"""Incident types of data stores: databases, caches, message buses, object stores."""

from __future__ import annotations

from verl_aiops.incidents.simulator.faults import DATA, ERRORS, SLOW, STALE, Fault, Voice
from verl_aiops.incidents.simulator.topology import APP, CACHE, DB, QUEUE, STORE

DATA_FAULTS = (
    Fault(
        name="deadlock",
        kinds=(DB,),
        effects=(ERRORS, SLOW),
        own=Voice(
            en=(
                "deadlock detected: process {pid} waits for ShareLock held by {pid2}, and back",
                "transaction {many} rolled back as deadlock victim, table {table}",
                "{some} lock cycles on {table} within a minute",
            ),
            zh=(
                "检测到死锁：进程 {pid} 等待 {pid2} 持有的锁，互相等待",
                "事务 {many} 作为死锁牺牲者回滚，表 {table}",
                "一分钟内 {table} 上出现 {some} 次锁环",
            ),
        ),
        remote=Voice(
            en=("{callee}: SQLSTATE 40P01, transaction chosen as victim",),
            zh=("{callee}：SQLSTATE 40P01，事务被选为牺牲者",),
        ),
        mild=Voice(en=("lock on {table} held {few} ms",), zh=("{table} 上的锁持有 {few} ms",)),
        metrics=("deadlocks_1m={some} (usual 0)",),
        mild_metrics=("deadlocks_1m=0 lock_wait_ms={few}",),
    ),
    Fault(
        name="slow_query",
        kinds=(DB,),
        effects=(SLOW,),
        own=Voice(
            en=(
                "duration {slow_ms} ms, sequential scan on {table}, {many} rows read",
                "plan changed for {table}: full scan instead of index, {slow_s} s",
                "statement on {table} runs {slow_s} s, statistics {days} days old",
            ),
            zh=(
                "语句耗时 {slow_ms} ms，顺序扫描 {table}，读取 {many} 行",
                "{table} 执行计划改变：全表扫描，{slow_s} 秒",
                "{table} 上的语句运行 {slow_s} 秒，统计信息已 {days} 天",
            ),
        ),
        remote=Voice(
            en=("statement on {callee} needs {slow_s} s, plan shows a full scan of {table}",),
            zh=("{callee} 上的语句需要 {slow_s} 秒，计划为全表扫描 {table}",),
        ),
        mild=Voice(en=("index scan on {table}, {few} ms",), zh=("{table} 索引扫描 {few} ms",)),
        metrics=("statement_p99_ms={slow_ms} (usual {ok_ms}) rows_scanned={many}",),
        mild_metrics=("statement_p99_ms={ok_ms} (usual {ok_ms2})",),
    ),
    Fault(
        name="replication_lag",
        kinds=(DB, QUEUE),
        effects=(STALE,),
        own=Voice(
            en=(
                "replica {node} is {big_s} s behind the primary",
                "replay stalled at position {many}, primary at {many2}",
                "follower {node} dropped from the in-sync set, {big_s} s behind",
            ),
            zh=(
                "副本 {node} 落后主库 {big_s} 秒",
                "回放停在 {many}，主库已到 {many2}",
                "跟随者 {node} 落后 {big_s} 秒，移出同步集合",
            ),
        ),
        remote=Voice(
            en=("read from a replica of {callee} is {big_s} s old",),
            zh=("从 {callee} 副本读到的数据已过时 {big_s} 秒",),
        ),
        mild=Voice(en=("replica {node} {few} ms behind",), zh=("副本 {node} 落后 {few} ms",)),
        metrics=("replica_lag_s={big_s} (usual 0.{few})",),
        mild_metrics=("replica_lag_s=0.{few} (usual 0.{few2})",),
    ),
    Fault(
        name="eviction_storm",
        kinds=(CACHE,),
        effects=(SLOW,),
        own=Voice(
            en=(
                "evicted {many} keys in 10 s, hit ratio 0.{low_pct}",
                "maxmemory reached, {many} live keys thrown out per minute",
                "hit ratio fell to {low_pct}%, misses go to the origin",
            ),
            zh=(
                "10 秒内淘汰 {many} 个键，命中率 {low_pct}%",
                "达到 maxmemory，每分钟丢弃 {many} 个有效键",
                "命中率降到 {low_pct}%，请求回源",
            ),
        ),
        remote=Voice(
            en=("{callee} misses {bad_pct}% of lookups, keys vanish within seconds",),
            zh=("{callee} 查找 {bad_pct}% 未命中，键数秒内消失",),
        ),
        mild=Voice(
            en=("{some} expired keys removed, hit ratio {good_ratio}",),
            zh=("清理 {some} 个过期键，命中率 {good_ratio}",),
        ),
        metrics=("evictions_1m={many} (usual {some}) hit_pct={low_pct}",),
        mild_metrics=("evictions_1m={some} (usual {some2}) hit_ratio={good_ratio}",),
    ),
    Fault(
        name="consumer_lag",
        kinds=(QUEUE, APP),
        effects=(STALE,),
        own=Voice(
            en=(
                "consumer group is {many} messages behind on partition {few}",
                "poll loop too slow, left the group {few} times, {many} messages pending",
                "oldest unread message is {big_s} s old",
            ),
            zh=(
                "消费组在分区 {few} 上落后 {many} 条消息",
                "拉取循环过慢，{few} 次被移出消费组，积压 {many} 条",
                "最早的未读消息已等待 {big_s} 秒",
            ),
        ),
        remote=Voice(
            en=("event sent to {callee} still unread after {big_s} s, {many} ahead of it",),
            zh=("发往 {callee} 的事件 {big_s} 秒后仍未读，前面有 {many} 条",),
        ),
        mild=Voice(en=("consumer group {few} messages behind",), zh=("消费组落后 {few} 条消息",)),
        metrics=("messages_behind={many} (usual {few})",),
        mild_metrics=("messages_behind={few} (usual {few2})",),
    ),
    Fault(
        name="data_corruption",
        kinds=(DB, STORE, CACHE),
        effects=(ERRORS,),
        own=Voice(
            en=(
                "checksum mismatch in block {many}: stored {hash}, computed {rid}",
                "page {many} of {table} is invalid, refusing to read it",
                "cannot decode value written by {version}: bad magic {hash}",
            ),
            zh=(
                "块 {many} 校验和不符：存储 {hash}，计算 {rid}",
                "{table} 第 {many} 页无效，拒绝读取",
                "无法解码 {version} 写入的值：魔数 {hash} 错误",
            ),
        ),
        remote=Voice(
            en=("{callee} returned a record with a wrong checksum ({hash})",),
            zh=("{callee} 返回的记录校验和错误（{hash}）",),
        ),
        mild=Voice(en=("scrub finished, {many} blocks good",), zh=("巡检完成，{many} 个块正常",)),
        metrics=("checksum_errors_1m={some} (usual 0)",),
        mild_metrics=("checksum_errors_1m=0",),
    ),
    Fault(
        name="connection_limit_reached",
        kinds=DATA,
        effects=(ERRORS, SLOW),
        own=Voice(
            en=(
                "FATAL: sorry, too many clients already ({pool} of {pool})",
                "max connections {pool} reached, client {ip} turned away",
                "listener full: {pool} sessions open, {some} refused in 10 s",
            ),
            zh=(
                "FATAL：客户端过多（{pool}/{pool}）",
                "达到最大连接数 {pool}，拒绝客户端 {ip}",
                "监听已满：{pool} 个会话，10 秒内拒绝 {some} 个",
            ),
        ),
        remote=Voice(
            en=("{callee}: too many clients already", "{callee} turned us away: its {pool} sessions are taken"),
            zh=("{callee}：客户端过多", "{callee} 拒绝连接：{pool} 个会话已占满"),
        ),
        mild=Voice(en=("{few} sessions open, limit {pool}",), zh=("当前 {few} 个会话，上限 {pool}",)),
        metrics=("sessions={pool} of {pool} refused_1m={some}",),
        mild_metrics=("sessions={few} of {pool} refused_1m=0",),
        aliases=("too_many_connections",),
    ),
)
