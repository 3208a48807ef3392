from autotl.engine.device import kind


def test_the_kind_of_a_device():
    assert [kind(device) for device in ("cpu", "cuda", "cuda:1", "mps")] == ["cpu", "cuda", "cuda", "mps"]
