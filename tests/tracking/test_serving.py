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


def test_by_default_the_pages_are_local_and_mlflow_s_own_checks_apply(server):
    for host in ("127.0.0.1", "localhost"):
        assert server(host).is_local
        assert not [name for name in server(host)._environment() if name.startswith("MLFLOW_SERVER_ALL")]


def test_on_all_addresses_the_pages_answer_to_this_machine_s_names_only(server):
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


def test_mlflow_s_own_variable_applies_if_no_hosts_are_given(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "proxy.example.org")
    assert server("0.0.0.0")._environment()["MLFLOW_SERVER_ALLOWED_HOSTS"] == "proxy.example.org"
    assert "gpu1:*" in server("0.0.0.0", "gpu1")._environment()["MLFLOW_SERVER_ALLOWED_HOSTS"]


def test_an_ipv6_address_is_written_as_in_urls(server):
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("no IPv6 here")
    assert server("::1").is_local
    assert server("::1").here == f"http://[::1]:{server('::1').port}"
    assert server("::").here == f"http://[::1]:{server('::').port}"
