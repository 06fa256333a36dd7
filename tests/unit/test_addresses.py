"""Which addresses may be connected to: tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcimg.config import load as config
from hpcimg.config.registriesconf import Mirror, Rule
from hpcimg.http.addresses import Reach, kind
from hpcimg.site.hosts import site_hosts


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", "public"),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", "public"),
        ("64:ff9b::5db8:d70e", "public"),  # 93.184.215.14, by NAT64
        ("127.8.9.1", "loopback"),
        ("::1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.1.2.3", "private"),
        ("172.31.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00:ec2::254", "private"),
        ("fec0::1", "private"),
        ("224.0.0.1", "private"),
        ("239.1.1.1", "private"),
        ("255.255.255.255", "private"),
        ("ff02::1", "private"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::a9fe:a9fe", "private"),  # a site's own NAT64
        ("2002:a9fe:a9fe::1", "link-local"),
        ("2002:a00:1::1", "private"),
        ("::10.0.0.1", "private"),
        ("2001:0:4136:e378:8000:63bf:f5ff:fffe", "private"),  # Teredo
    ],
)
def test_kinds(address: str, expected: str) -> None:
    assert kind(address) == expected


def test_networks_are_allowed_in_every_form() -> None:
    reach = Reach(["10.0.0.0/8", "::1"])
    for address in ("10.2.3.4", "::ffff:10.2.3.4", "64:ff9b::a02:304", "::1", "93.184.215.14"):
        assert reach.why_not(address) == ""
    assert reach.why_not("11.0.0.1") == ""
    assert reach.why_not("172.16.0.1") == "172.16.0.1 is a private address"
    assert reach.why_not("127.0.0.1") == "127.0.0.1 is a loopback address"
    assert Reach(["::ffff:10.0.0.0/104"]).why_not("10.0.0.1")


def test_a_named_host_is_named_with_its_port() -> None:
    reach = Reach([], ["Registry.internal:5000", "plain.internal", "[fd00::7]:8080", "a:b:c", "x:"])
    assert reach.names("registry.INTERNAL", 5000)
    assert not reach.names("registry.internal", 443)
    assert reach.names("plain.internal", 443)
    assert reach.names("plain.internal.", 80)
    assert not reach.names("plain.internal", 22)
    assert reach.names("fd00::7", 8080)
    assert not reach.names("", 80)


def test_the_site_names_hosts_in_many_places(tmp_path: Path) -> None:
    main = tmp_path / "hpcimg.conf"
    main.write_text(
        "[registry docker.io]\n[registry r.internal:5000]\nmirrors = m.internal:1/proxy\n"
        "[static pages]\nurl = http://pages.internal/registry\n"
        "[alias]\na = https://alias.internal/x.sif\nb/* = oras://alias2.internal:7/b/*\n"
        "c = s3://bucket/x\nd = docker://ubuntu\n"
        "[policy]\nallow = https://images.internal/* *://any.internal/* docker://*.internal/* "
        "https://open* /data/*\n"
    )
    rule = Rule(
        "p.internal/x", "l.internal:2/y", False, False, (Mirror("mm.internal", True, "all"),)
    )
    found = site_hosts(config.load(str(main)), [rule], "http://10.0.0.9:8333", "")
    assert set(found) == {
        "r.internal:5000", "m.internal:1", "p.internal", "l.internal:2", "mm.internal",
        "10.0.0.9:8333", "pages.internal", "alias.internal", "alias2.internal:7",
        "images.internal", "registry-1.docker.io",
    }  # fmt: skip


def test_nothing_is_named_by_an_empty_configuration(tmp_path: Path) -> None:
    main = tmp_path / "hpcimg.conf"
    main.write_text("")
    loaded = config.load(str(main))
    assert site_hosts(loaded, ()) == ()
