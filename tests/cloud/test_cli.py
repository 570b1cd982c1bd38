"""The command line in this process: flags, environment, file, sentences and exit codes. Real processes elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ssd_cloud.cli.main import main


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    import os

    for name in list(os.environ):
        if name.startswith("SSD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SSD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    captured = capsys.readouterr()
    return caught.value.code or 0, captured.out, captured.err


def test_help_needs_no_torch_and_no_grpc(own_home):
    code = (
        "import sys\nfrom ssd_cloud.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'transformers', 'grpc'} & set(sys.modules), 'too much loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("serve", "models", "plan", "token", "adapt", "instruct"))


def test_tokens(capsys):
    code, out, _ = call(capsys, "token", "new", "--name", "laptop", "--json")
    made = json.loads(out)
    assert (code, made["name"], made["token"][:4]) == (0, "laptop", "ssd_")
    code, out, _ = call(capsys, "token", "list", "--json")
    assert json.loads(out) == [{k: made[k] for k in ("id", "name", "created")}]
    code, out, _ = call(capsys, "token", "list")
    assert made["id"] in out
    assert made["token"] not in out
    assert call(capsys, "token", "revoke", made["id"])[0] == 0
    code, _, err = call(capsys, "token", "revoke", made["id"])
    assert (code, err.count("\n"), "token list" in err) == (2, 1, True)
    assert "ssd_" in call(capsys, "token", "new")[1]


def test_models(capsys, own_home):
    code, out, _ = call(capsys, "models", "--json")
    assert (code, [m["name"] for m in json.loads(out)]) == (0, ["smollm2-135m-ssd2"])
    broken = own_home / "home/models/broken"
    broken.mkdir(parents=True)
    (broken / "model.json").write_text("{")
    found = {m["name"]: m["ready"] for m in json.loads(call(capsys, "models", "--json")[1])}
    assert found == {"smollm2-135m-ssd2": False, "broken": False}
    assert "broken" in call(capsys, "models")[1]


def test_plan(capsys):
    code, out, _ = call(capsys, "plan", "--model", "opt-13b", "--gpu", "80GB", "--json")
    made = json.loads(out)
    assert (code, made["sessions"], made["cache_bytes_a_token"]) == (0, 29, 819_200)
    code, out, _ = call(capsys, "plan", "--model", "opt-13b")
    assert (code, "0.819 MB" in out, "29" in out) == (0, True, True)
    code, out, _ = call(capsys, "plan", "--model", "opt-66b")
    assert (code, "tokens/s" in out) == (0, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["plan", "--model", "opt-14b"], "opt-13b"), (["plan", "--model", "opt-13b", "--gpu", "big"], "80GB"),
     (["plan", "--model", "opt-13b", "--dtype", "int3"], "bf16"),
     (["serve", "--listen", "nowhere"], "HOST:PORT"), (["serve", "--listen", "127.0.0.1:99999"], "HOST:PORT"),
     (["serve", "--listen", "0.0.0.0:0"], "--tls-cert"),
     (["serve", "--listen", "0.0.0.0:0", "--no-token"], "this machine"),
     (["serve", "--token", "abc"], "8 printable"), (["serve", "--token", "long enough", "--no-token"], "contradict"),
     (["serve", "--cache-bytes", "lots"], "GiB"), (["serve", "--log-level", "loud"], "warning")],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_2(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert (code, out, words in err, err.count("\n")) == (2, "", True, 1), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["serve", "--max-sessions", "0"], "see ssd-cloud serve --help"), (["serve", "--nonsense"], "no such option"),
     (["nonsense"], "no such command"), (["token", "revoke"], "missing argument"),
     (["token", "revoke", "\x1b[2J\n"], "token list"), (["plan", "--model", "[/]\x1b[2J"], "no shapes")],
)  # fmt: skip
def test_wrong_flags_are_one_line_and_exit_2(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert (code, out, words in err, err.count("\n"), "\x1b" in err) == (2, "", True, 1, False), err


def test_names_are_shown_and_neither_read_as_markup_nor_obeyed(capsys, tmp_path):
    for name in ("[/]", "red\x1b[31m"):
        token_id = json.loads(call(capsys, "token", "new", "--name", name, "--json")[1])["id"]
        code, out, _ = call(capsys, "token", "list")
        assert (code, name.replace("\x1b", "") in out, "\x1b" in out) == (0, True, False)
        assert call(capsys, "token", "revoke", token_id)[0] == 0
    (tmp_path / "home" / "models" / "[b]").mkdir(parents=True)
    (tmp_path / "home" / "models" / "[b]" / "model.json").write_text("{}")
    code, out, _ = call(capsys, "models")
    assert (code, "[b]" in out) == (0, True)
    assert call(capsys, "serve", "--model", "[/b]", "--listen", "127.0.0.1:0")[0] == 1


def test_what_nobody_expected_is_a_sentence(capsys, monkeypatch):
    from ssd_cloud import plan

    for error, words in ((ZeroDivisionError("oops"), "SSD_DEBUG"), (MemoryError(), "memory")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(plan, "find_gpu", fail)
        code, out, err = call(capsys, "plan", "--model", "opt-13b")
        assert (code, out, words in err, err.count("\n")) == (1, "", True, 1)


def test_a_missing_model_is_exit_1(capsys):
    code, _, err = call(capsys, "serve", "--model", "nothing-here", "--listen", "127.0.0.1:0")
    assert (code, "ssd-cloud models" in err, err.count("\n")) == (1, True, 1)


def test_flag_beats_variable_beats_file(capsys, monkeypatch, own_home):
    file = own_home / "node.toml"
    file.write_text('[plan]\nmodel = "opt-125m"\nblock = 7\ncontext = 100\ndtype = "fp32"\n')
    monkeypatch.setenv("SSD_CONFIG", str(file))
    monkeypatch.setenv("SSD_CONTEXT", "200")
    monkeypatch.setenv("SSD_DTYPE", "fp16")
    made = json.loads(call(capsys, "plan", "--dtype", "bf16", "--json")[1])
    assert (made["model"], made["block"], made["context"], made["dtype"]) == ("opt-125m", 7, 200, "bf16")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[plan\n", "cannot be read"), ("[nonsense]\n", "no use for 'nonsense'"), ("[serve]\nlisen = 1\n", "'lisen'"),
     ("serve = 3\n", "no use for 'serve'")],
)  # fmt: skip
def test_a_wrong_file_is_exit_2(capsys, monkeypatch, own_home, text, words):
    file = own_home / "node.toml"
    file.write_text(text)
    monkeypatch.setenv("SSD_CONFIG", str(file))
    code, _, err = call(capsys, "models")
    assert (code, words in err) == (2, True), err
    for named in (own_home / "missing.toml", own_home, "~nobody-of-that-name/x"):
        monkeypatch.setenv("SSD_CONFIG", str(named))
        code, _, err = call(capsys, "models")
        assert (code, err.count("\n"), "unexpected" in err) == (2, 1, False)


def test_a_home_that_cannot_be_written_is_exit_1(capsys, monkeypatch, own_home):
    (own_home / "file").write_text("")
    for named in (own_home / "file" / "home", own_home / "file", "~nobody-of-that-name/x"):
        monkeypatch.setenv("SSD_HOME", str(named))
        code, _, err = call(capsys, "token", "new")
        assert (code, err.count("\n"), "set SSD_HOME" in err) == (1, 1, True)


def test_a_full_disk_is_one_sentence(capsys, monkeypatch):
    import errno

    from ssd_cloud import auth

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(auth.json, "dump", full)
    code, out, err = call(capsys, "token", "new")
    assert (code, out, "No space left" in err, err.count("\n")) == (1, "", True, 1)
    monkeypatch.undo()
