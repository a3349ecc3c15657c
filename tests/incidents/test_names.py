"""Which names a text holds, and which names hold each other."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_aiops.incidents.names import names_in, overlap

NAMED = [
    ("cart", "cart: connection refused"),
    ("cart", "cart."),
    ("cart", "calls cart/"),
    ("cart", "(cart)"),
    ("cart", "cart=down"),
    ("cart", "cart-0 evicted"),
    ("cart", "cart-12"),
    ("cart", "pod cart-7f9c4d5b6-x2x9z OOMKilled"),
    ("cart", "cart-5d9f-abcde"),
    ("cart", "replica set cart-7f9c4d5b6 scaled"),
    ("cart", "cart-x2x9z on every node"),
    ("cart", "shop/cart-7f9c4d5b6-x2x9z: back-off"),
    ("cart", "pod/cart"),
    ("cart", "http://cart/api/v1/items"),
    ("cart", "http://cart:8080/items"),
    ("cart", "cart.shop.svc.cluster.local:80"),
    ("nova-compute", "nova-compute.log.1.2017-05-16"),
    ("sshd", "sshd.service: failed"),
    ("jenkins.io", "https://jenkins.io/docs"),
    ("jenkins.io", "jenkins.io is down"),
    ("jenkins.io", "see jenkins.io."),
    ("支付服务", "告警：支付服务超时"),
    ("支付", "调用支付失败，cart正常"),
    ("cart", "调用cart失败"),
    ("c++ api (v1.*)", "in c++ api (v1.*) now"),
    ("[a-z]+", "literal [a-z]+ here"),
    ("a", "a: gone"),
    ("EC2, EBS", "EC2, EBS in us-east-1"),
    ("cart", "cart->db 503"),
    ("db", "cart->db 503"),
    ("cart", "cart-->db"),
    ("cart", "db<-cart"),
    ("cart", "cart- gone"),
    ("mysql", "mysql-0.mysql.shop.svc.cluster.local"),
    ("mysql", "mysql-0->cart"),
    ("PetSearch", "metric PetSearch_AWS::ECS::Fargate requests Sum=1123 (usual 1135)"),
]
NOT_NAMED = [
    ("jenkins.io", "ci.jenkins.io is down"),
    ("jenkins.io", "jenkins.io.example.com"),
    ("jenkins.io", "updates/jenkins.io/current"),
    ("jenkins", "ci.jenkins.io"),
    ("cart", "cart-service"),
    ("cart", "cart-service-7f9c4d5b6-x2x9z"),
    ("cart", "cart-proxy"),
    ("cart", "cart-cache-0"),
    ("cart", "cart-7f9c4d5b6-x2x9z-extra"),
    ("cart", "cart-v2-admin"),
    ("cart", "cart-svc1-proxy"),
    ("cart", "cart-1234"),
    ("cart", "shopping-cart"),
    ("cart", "cart_items"),
    ("cart", "cartservice"),
    ("cart", "com.shop.cart.CartService"),
    ("cart", "/srv/cart/data"),
    ("cart", "/srv/shop/cart"),
    ("cart", "shop/cart/add"),
    ("cart", "Cart"),
    ("db", "ledger-db"),
    (".*", "anything"),
    ("a", "alpha"),
    ("cart", "cart_AWS"),
    ("cart", "cart_client"),
    ("cart", "shopping_cart_AWS::Lambda"),
    ("cart", "cart--extra"),
    ("cart", "x-cart->db"),
    ("shop", "mysql-0.mysql.shop.svc.cluster.local"),
]


@pytest.mark.parametrize("name, text", NAMED)
def test_a_text_names(name, text):
    assert names_in(text, [name]) == {name}


@pytest.mark.parametrize("name, text", NOT_NAMED)
def test_a_text_does_not_name(name, text):
    assert names_in(text, [name]) == set()


def test_a_longer_name_of_the_list_takes_its_words():
    names = ["DNS", "DNS infrastructure", "cart", "cart-2", "支付", "支付服务"]
    assert names_in("DNS infrastructure is slow", names) == {"DNS infrastructure"}
    assert names_in("DNS infrastructure is slow, DNS too", names) == {"DNS infrastructure", "DNS"}
    assert names_in("cart-2 is down", names) == {"cart-2"}
    assert names_in("cart-3 is down", names) == {"cart"}
    assert names_in("支付服务超时", names) == {"支付服务"}
    # a longer one that is no whole word itself takes nothing
    assert names_in("cart cart-2x", names) == {"cart"}


def test_names_that_are_prefixes_of_each_other_are_told_apart():
    names = [f"svc-{'x' * n}" for n in range(1, 40)]
    for name in names:
        assert names_in(f"error in {name}: timeout", names) == {name}


def test_a_large_taxonomy_is_searched_as_one_by_one():
    """2,000 names, all of them found where they stand, in a text and in a hostile one."""
    rng = random.Random(0)
    names = sorted({"".join(rng.choices("abcdefgh", k=6)) + f"-{at}-svc" for at in range(2000)})
    there = set(rng.sample(names, 40))
    text = " ".join(f"{name}: error {rng.random()}" for name in sorted(there))
    assert names_in(text, names) == there
    repeated = "ab-" * 50_000
    assert names_in(repeated, [*names, "ab", "ab-ab", "-", "ab-" * 400]) == set()
    assert names_in("a " * 50_000, ["a", "a a", *names]) == {"a a"}


@settings(deadline=None, max_examples=200)
@given(st.text("ab-./ _7支\n", max_size=40), st.lists(st.text("ab-./7支", min_size=1, max_size=5), max_size=6))
def test_what_is_found_occurs_and_ends_where_a_word_ends(text, names):
    found = names_in(text, names)
    assert found <= {name for name in names if name in text}
    for name in set(names) - found:
        alone = rf"(?<!\S){re.escape(name)}(?!\S)"
        longer = [other for other in names if other != name and name in other]
        assert longer or not re.search(alone, text)


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ("DNS", "DNS infrastructure", True),
        ("cart", "CartService", True),
        ("cart", "cart-service", True),
        ("支付", "支付服务", True),
        ("db", "ledger-db", True),
        ("db", "feedback", False),
        ("a", "alpha", False),
        ("a", "plan a", True),
        ("cart", "cart", True),
        ("cart", "checkout", False),
        ("a.c", "abc", False),
        ("ts-travel-service", "ts-travel2-service", False),
        ("mail_relay", "Mail relay node", True),
        ("mail-relay", "mail relay", True),
    ],
)
def test_names_that_contain_each_other(one, other, expected):
    assert overlap(one, other) is overlap(other, one) is expected
