"""`python -m llm_proxy` is the command."""

import runpy

import pytest


def test_it_runs_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["anything", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("llm_proxy", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("llm-proxy, version ")
