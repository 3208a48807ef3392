import os
import socket

import pytest

from autotl.tracking.serving import Server


@pytest.fixture
def server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return lambda host, *names: Server("sqlite://", tmp_path, host, port, names)


def test_unless_more_is_asked_for_the_pages_are_this_machine_s_alone_and_mlflow_s_own_checks_hold(server):
    for host in ("127.0.0.1", "localhost"):
        assert server(host).is_local
        assert not [name for name in server(host)._environment() if name.startswith("MLFLOW_SERVER_ALL")]


def test_on_all_addresses_they_answer_to_this_machine_s_names_and_no_others(server):
    everywhere = server("0.0.0.0", "*.example.org")
    assert not everywhere.is_local
    assert everywhere.here == f"http://127.0.0.1:{everywhere.port}"
    assert everywhere.elsewhere == f"http://{socket.gethostname()}:{everywhere.port}"
    environment = everywhere._environment()
    hosts = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"localhost:*", "127.0.0.1", socket.gethostname(), "*.example.org"} <= {*hosts}
    assert not {"*", "*:*", "10.*", "192.168.*"} & {*hosts}
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]


def test_what_mlflow_was_told_by_its_own_variables_stands_where_no_names_are_said(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "proxy.example.org")
    assert server("0.0.0.0")._environment()["MLFLOW_SERVER_ALLOWED_HOSTS"] == "proxy.example.org"
    assert "gpu1:*" in server("0.0.0.0", "gpu1")._environment()["MLFLOW_SERVER_ALLOWED_HOSTS"]


def test_an_address_of_six_is_written_as_urls_have_it(server):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    assert server("::1").is_local
    assert server("::1").here == f"http://[::1]:{server('::1').port}"
    assert server("::").here == f"http://[::1]:{server('::').port}"
