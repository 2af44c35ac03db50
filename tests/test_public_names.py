"""The package's surface is exactly what is documented, and light to import."""

import subprocess
import sys

import daifi_flows


def test_every_public_name_exists_and_has_a_docstring() -> None:
    for name in daifi_flows.__all__:
        assert getattr(daifi_flows, name).__doc__, name
    assert sorted(daifi_flows.__all__) == daifi_flows.__all__
    assert dir(daifi_flows) == daifi_flows.__all__


def test_unknown_names_are_refused() -> None:
    assert not hasattr(daifi_flows, "nonsense")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, daifi_flows, daifi_flows.cli, daifi_flows.cnft, daifi_flows.ledger, "
        "daifi_flows.judges, daifi_flows.ray_mesh\n"
        "heavy = {'torch', 'ray', 'vllm', 'ezkl', 'transformers', 'lancedb', 'prefect', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
