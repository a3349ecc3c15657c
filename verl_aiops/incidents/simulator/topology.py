"""The systems that incidents are simulated in: services, who calls whom, what users do with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

EDGE, APP, DB, CACHE, QUEUE, STORE = "edge", "app", "db", "cache", "queue", "store"


@dataclass(frozen=True)
class Topology:
    """A call graph without cycles. `kinds` gives each service's kind, `calls` the services that each one calls.

    `flows` are what users notice, English and Chinese; they name no service. `operations` are request names for logs
    and spans.
    """

    name: str
    kinds: Mapping[str, str]
    calls: Mapping[str, tuple[str, ...]]
    flows: tuple[tuple[str, str], ...]
    operations: tuple[str, ...]

    @cached_property
    def services(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    @cached_property
    def callers(self) -> Mapping[str, tuple[str, ...]]:
        """Who calls each service."""
        return {name: tuple(caller for caller, called in self.calls.items() if name in called) for name in self.kinds}


SHOP = Topology(
    name="shop",
    kinds={
        "edge": EDGE,
        "api": APP,
        "auth": APP,
        "catalog": APP,
        "cart": APP,
        "orders": APP,
        "payments": APP,
        "inventory": APP,
        "recommend": APP,
        "notify": APP,
        "db": DB,
        "cache": CACHE,
        "queue": QUEUE,
    },
    calls={
        "edge": ("api", "auth"),
        "api": ("auth", "catalog", "cart", "orders", "recommend"),
        "auth": ("cache", "db"),
        "catalog": ("cache", "db", "inventory"),
        "cart": ("cache", "catalog"),
        "orders": ("payments", "inventory", "db", "queue"),
        "payments": ("db", "queue"),
        "inventory": ("db", "cache"),
        "recommend": ("catalog", "cache"),
        "notify": ("queue", "db"),
    },
    flows=(
        ("Storefront pages", "店面页面"),
        ("Placing an order", "下单"),
        ("Product listing", "商品列表"),
        ("Sign-in on the web shop", "网店登录"),
        ("The basket page", "购物篮页面"),
    ),
    operations=("GET /items", "POST /checkout", "GET /basket", "POST /session", "GET /stock", "PUT /basket/lines"),
)

BANK = Topology(
    name="bank",
    kinds={
        "mobile-gateway": EDGE,
        "accounts": APP,
        "transfers": APP,
        "fraud-check": APP,
        "fx-rates": APP,
        "card-auth": APP,
        "kyc": APP,
        "statements": APP,
        "ledger": APP,
        "ledger-db": DB,
        "session-cache": CACHE,
        "event-bus": QUEUE,
        "doc-store": STORE,
    },
    calls={
        "mobile-gateway": ("accounts", "transfers", "card-auth", "statements", "session-cache"),
        "accounts": ("ledger", "session-cache", "kyc"),
        "transfers": ("fraud-check", "fx-rates", "ledger", "event-bus"),
        "fraud-check": ("session-cache", "event-bus"),
        "fx-rates": ("session-cache",),
        "card-auth": ("fraud-check", "ledger"),
        "kyc": ("doc-store", "event-bus"),
        "statements": ("ledger", "doc-store"),
        "ledger": ("ledger-db", "event-bus"),
    },
    flows=(
        ("Payments from the phone app", "手机端付款"),
        ("The balance screen", "余额页面"),
        ("Card purchases at tills", "刷卡消费"),
        ("Monthly PDF downloads", "月度账单下载"),
        ("Foreign currency quotes", "外币报价"),
    ),
    operations=(
        "GET /balance",
        "POST /payment",
        "GET /quote",
        "POST /card/approve",
        "GET /pdf/latest",
        "POST /identity",
    ),
)

MEDIA = Topology(
    name="media",
    kinds={
        "cdn-edge": EDGE,
        "playback": APP,
        "drm": APP,
        "profiles": APP,
        "ranking": APP,
        "billing": APP,
        "subtitles": APP,
        "encoder": APP,
        "metadata-db": DB,
        "hot-cache": CACHE,
        "job-bus": QUEUE,
        "object-store": STORE,
    },
    calls={
        "cdn-edge": ("playback", "profiles", "object-store"),
        "playback": ("drm", "subtitles", "profiles", "object-store", "hot-cache"),
        "drm": ("billing", "hot-cache"),
        "profiles": ("ranking", "metadata-db", "hot-cache"),
        "ranking": ("metadata-db", "hot-cache"),
        "billing": ("metadata-db", "job-bus"),
        "subtitles": ("object-store", "metadata-db"),
        "encoder": ("job-bus", "object-store"),
    },
    flows=(
        ("Starting a film", "影片起播"),
        ("The home row of suggestions", "首页推荐栏"),
        ("Live channel start-up", "直播起播"),
        ("New uploads becoming watchable", "新上传内容可播放"),
        ("Renewing a subscription", "续订会员"),
    ),
    operations=("GET /manifest", "POST /licence", "GET /home", "GET /segment", "POST /upload", "GET /captions"),
)

FLEET = Topology(
    name="fleet",
    kinds={
        "driver-gateway": EDGE,
        "dispatch": APP,
        "routing-engine": APP,
        "telemetry": APP,
        "geofence": APP,
        "pricing": APP,
        "eta-model": APP,
        "device-registry": APP,
        "trip-db": DB,
        "timeseries-db": DB,
        "geo-cache": CACHE,
        "stream-bus": QUEUE,
        "map-tiles": STORE,
    },
    calls={
        "driver-gateway": ("dispatch", "telemetry", "device-registry"),
        "dispatch": ("routing-engine", "pricing", "eta-model", "trip-db", "stream-bus"),
        "routing-engine": ("map-tiles", "geo-cache", "geofence"),
        "telemetry": ("stream-bus", "timeseries-db", "device-registry"),
        "geofence": ("geo-cache", "trip-db"),
        "pricing": ("geo-cache", "eta-model"),
        "eta-model": ("timeseries-db", "geo-cache"),
        "device-registry": ("trip-db", "geo-cache"),
    },
    flows=(
        ("Assigning a van to a pick-up", "派车"),
        ("Live positions on the control-room map", "调度大屏实时位置"),
        ("Arrival times shown to customers", "向客户展示的到达时间"),
        ("Drivers starting a shift", "司机上线"),
        ("Fare estimates", "费用预估"),
    ),
    operations=("POST /pickup", "GET /position", "GET /arrival", "POST /shift", "GET /fare", "PUT /van/state"),
)

TOPOLOGIES: dict[str, Topology] = {topology.name: topology for topology in (SHOP, BANK, MEDIA, FLEET)}
